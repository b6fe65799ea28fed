"""Train the model that comes with nextscale, `nextscale/default_model/`, on the icons of `make_icon_pack.py`.

    python scripts/make_icon_pack.py …                       # its first lines tell how
    python scripts/make_default_model.py icons --runs runs/default [--keep-tokenizer]

Each run by the command that is printed; one that was stopped goes on. Both models have two, the second from where the
first came to: an hour and a half of one core for the tokenizer, two hours for the transformer, whose second run weighs
the scales more evenly, since it is the coarse ones that prompts decide. Weights are stored in bfloat16, beside the
names of those who drew the icons.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.hub import DEFAULT_MODEL

ATTRIBUTION = Path(__file__).with_name("icon_pack_attribution.md")
PRESET = ["--preset", "icons-64"]
TOKENIZER = {"first": ["--steps", "2400", "--checks", "4"], "second": ["--steps", "4000", "--checks", "5"]}
MUON = ["optimization.optimizer=muon", "optimization.muon_rate=4e-3", "average=0.998"]
TRANSFORMER = {
    "words": ["--steps", "2033", "--cooldown", "0", "--set", *MUON],
    "transformer": ["--steps", "2150", "--cooldown", "0.32", "--set", *MUON, "scale_exponent=0.7"],
}


def main() -> None:
    """The tokenizer, then the transformer on what it makes of the icons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icons", help="folder that make_icon_pack.py wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/default"), help="where the runs are kept")
    parser.add_argument("--keep-tokenizer", action="store_true", help="train the transformer alone")
    asked = parser.parse_args()
    if not asked.keep_tokenizer:
        make_tokenizer(asked.icons, asked.runs)
    make_transformer(asked.icons, asked.runs)
    shutil.copyfile(ATTRIBUTION, DEFAULT_MODEL / "attribution.md")
    print(f"{DEFAULT_MODEL}: {sum(file.stat().st_size for file in DEFAULT_MODEL.glob('*.safetensors')) / 1e6:.1f} MB")


def make_tokenizer(icons: str, runs: Path) -> None:
    """Both runs; the weights of the package are those of the second, averaged and rounded."""
    begin: list[str] = []
    for name, length in TOKENIZER.items():
        out = str(runs / name)
        call("train", "tokenizer", "--data", icons, *PRESET, "--batch", "16", *begin, *length, "--out", out)
        begin = ["--init", out]
    MultiScaleVQVAE.load(Path(out)).to(torch.bfloat16).save(DEFAULT_MODEL)


def make_transformer(icons: str, runs: Path) -> None:
    """On tokens of the tokenizer as the package has it; both are then the package's."""
    tokens, given = str(runs / "tokens"), ["--tokenizer", str(DEFAULT_MODEL)]
    call("encode", icons, "--captions", "own", *given, "--out", tokens)
    begin: list[str] = []
    for name, recipe in TRANSFORMER.items():
        out = str(runs / name)
        call("train", "transformer", "--data", tokens, *given, *PRESET, *begin, *recipe, "--out", out)
        begin = ["--init", out]
    pipe = Pipeline.load(out, precision="fp32")
    for model in (pipe.tokenizer, pipe.transformer):
        model.to(torch.bfloat16)
    pipe.save(DEFAULT_MODEL)


def call(*command: str) -> None:
    """A command of nextscale."""
    print("$ nextscale", *command, flush=True)
    subprocess.run([sys.executable, "-m", "nextscale", *command], check=True)


if __name__ == "__main__":
    main()
