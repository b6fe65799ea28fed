"""The program with models small enough for tests: `python small.py CONFIGS.json train tokenizer --steps 9 ...`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from nextscale import presets
from nextscale.cli import main
from nextscale.config import TokenizerConfig, TransformerConfig, from_json

configs = json.loads(Path(sys.argv[1]).read_text())
tokenizer = from_json(TokenizerConfig, configs["tokenizer"])
transformer = from_json(TransformerConfig, configs["transformer"])
get = presets.get
presets.get = lambda name: dataclasses.replace(get(name), tokenizer=tokenizer, transformer=transformer)
sys.exit(main(sys.argv[2:]))
