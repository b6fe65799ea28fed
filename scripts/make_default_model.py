"""Train what comes with nextscale, `nextscale/default_model/`, on the icons of `make_icon_pack.py`: a tokenizer so far.

    python scripts/make_icon_pack.py …                       # its first lines tell how
    python scripts/make_default_model.py icons --runs runs/default

Two runs, the second from where the first came to, each by the command that is printed; one that was stopped goes on.
An hour and a half of one core. The averaged weights are then stored in bfloat16, beside the names of those who drew the
icons.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from nextscale.cli.models import DEFAULT_MODEL
from nextscale.tokenizer import MultiScaleVQVAE

ATTRIBUTION = Path(__file__).with_name("icon_pack_attribution.md")
RUNS = {"first": ["--steps", "2400", "--checks", "4"], "second": ["--steps", "4000", "--checks", "5"]}


def main() -> None:
    """The runs, then the files of the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icons", help="folder that make_icon_pack.py wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/default"), help="where the runs are kept")
    asked = parser.parse_args()
    begin: list[str] = []
    for name, length in RUNS.items():
        out = str(asked.runs / name)
        train(["--data", asked.icons, "--preset", "icons-64", "--batch", "16", *begin, *length, "--out", out])
        begin = ["--init", out]
    write(Path(out), DEFAULT_MODEL)


def train(options: list[str]) -> None:
    """A run of the tokenizer."""
    command = ["train", "tokenizer", *options]
    print("$ nextscale", *command, flush=True)
    subprocess.run([sys.executable, "-m", "nextscale", *command], check=True)


def write(run: Path, to: Path) -> None:
    """The tokenizer of a run, and whom to thank for its pictures."""
    MultiScaleVQVAE.load(run).to(torch.bfloat16).save(to)
    shutil.copyfile(ATTRIBUTION, to / "attribution.md")
    print(f"{to}: {sum(file.stat().st_size for file in to.glob('*.safetensors')) / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
