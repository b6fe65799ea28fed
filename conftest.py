"""For all tests: one thread. Their models are so small that a second thread costs more than it gives, and on a machine
that is busy otherwise the two spend their time waiting for each other (20 s instead of 4 s for the README's Python).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the programs that tests start
