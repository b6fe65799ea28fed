"""`python -m nextscale` is `nextscale`."""

import sys

from nextscale.cli import main

sys.exit(main())
