"""The program whose networks look at 32 pixels, to be quick: `python glance.py evaluate generation ...`."""

from __future__ import annotations

import sys

from nextscale import features
from nextscale.cli import main

features.FeatureNetwork.side = 32
sys.exit(main(sys.argv[1:]))
