"""How good a model's pictures are, as figures with intervals and the protocol that repeats them.

    python examples/evaluate.py runs/demo emoji 2000

compares 2000 pictures with the held-out part of the data that the model was trained on, here the embedded emoji.
"""

import json
import sys
from pathlib import Path

from nextscale import cli

model, reference, count = sys.argv[1:]
card = Path("card.json")

words = f"evaluate generation --count {count} --guidance 0 1.5"
status = cli.main([*words.split(), "--model", model, "--reference", reference, "--json", str(card)])
assert status == 0, "what was wrong has been printed"

for result in json.loads(card.read_text("utf-8"))["results"]:
    print(f"guidance {result['card']['setting']['guidance']:g}")
    for figure in result["figures"].values():
        interval = "" if figure["low"] is None else f", 95 % in {figure['low']:.4g} .. {figure['high']:.4g}"
        print(f"  {figure['name']}: {figure['value']:.4g}{interval}")
