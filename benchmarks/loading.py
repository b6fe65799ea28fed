"""Memory that loading a checkpoint takes: peak resident size of a fresh process, beside the size of the weights.

    python benchmarks/loading.py                      # var-d30: writes files of 4 and 8 GB, one at a time
    python benchmarks/loading.py --preset var-d16 --folder /large/disk --json loading.json

The peak is the kernel's (`getrusage`), so pages of mapped files count while they are resident. "process" is the peak
once everything is imported and before anything is loaded; "read" is the peak after every page of the weights was read.
The last column is (loaded - process) / (the transformer's weights in bfloat16). The files hold zeros under the
release's names and shapes: in a file, and in the weights converted from it, zeros take as many pages as anything else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = (  # the release's suffix, or our own directory; stored in; held in
    (".pth", "fp32", "bf16"),
    (".pth", "bf16", "bf16"),
    (".pth", "fp32", "fp32"),
    (".safetensors", "fp32", "bf16"),
    ("directory", "fp32", "bf16"),
    ("directory", "bf16", "bf16"),
)


def write(folder: Path, preset: str, kind: str, stored: str) -> None:
    """A checkpoint of zeros, with the level table and the mask that the release stores."""
    import safetensors.torch
    import torch

    from nextscale import Pipeline, official
    from nextscale.machine.precision import DTYPES

    pipe = Pipeline.from_preset(preset, device="meta", precision=stored if kind == "directory" else "fp32")
    if kind == "directory":
        pipe.tokenizer.to_empty(device="cpu")
        pipe.transformer.to_empty(device="cpu")
        pipe.save(folder)
        return
    scales = pipe.transformer.config.scales
    for name, state in zip(("vae", "var"), official.export(pipe), strict=True):
        zeros = {n: torch.zeros(t.shape, dtype=DTYPES[stored]) for n, t in state.items()}
        if name == "var":
            zeros["lvl_1L"] = scales.level_ids()[None]
            zeros["attn_bias_for_masking"].masked_fill_(~scales.block_causal_mask(), -torch.inf)
        save = torch.save if kind == ".pth" else safetensors.torch.save_file
        save(zeros, folder / f"{name}{kind}")


def measure(folder: Path, kind: str, held: str) -> dict[str, float]:
    """Load once, in this process."""
    from nextscale import Pipeline, official

    process, start = _peak(), time.perf_counter()
    if kind == "directory":
        pipe = Pipeline.load(folder, precision=held)
    else:
        pipe = official.load(folder / f"vae{kind}", folder / f"var{kind}", precision=held)
    seconds, loaded = time.perf_counter() - start, _peak()
    for parameter in (*pipe.tokenizer.parameters(), *pipe.transformer.parameters()):
        parameter.detach().view(-1)[:: 4096 // parameter.element_size()].sum()
    half = 2 * sum(parameter.numel() for parameter in pipe.transformer.parameters())
    return {"process": process, "loaded": loaded, "read": _peak(), "half": half, "seconds": seconds}


def _peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _again(*arguments: object) -> str:
    """This program in a process of its own: the kernel hands a parent's peak down to its children."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="var-d30")
    parser.add_argument("--folder", type=Path, help="where the files are written and deleted again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS, metavar=("WHAT", "FOLDER", "KIND", "PRECISION"))
    options = parser.parse_args()
    if options.step:
        what, folder, kind, precision = options.step
        if what == "write":
            write(Path(folder), options.preset, kind, precision)
        else:
            print(json.dumps(measure(Path(folder), kind, precision)))
        return
    rows = []
    print(f"{options.preset}, GB of 10^9 bytes")
    print("file          stored  held   process  loaded    read  seconds  (loaded - process) / bf16 weights")
    for kind, stored, held in CASES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            _again("--preset", options.preset, "--step", "write", folder, kind, stored)
            row = json.loads(_again("--step", "measure", folder, kind, held))
        ratio = (row["loaded"] - row["process"]) / row["half"]
        gigabytes = "".join(f"{row[name] / 1e9:8.2f}" for name in ("process", "loaded", "read"))
        print(f"{kind:<14}{stored:<8}{held:<6}{gigabytes}{row['seconds']:9.1f}  {ratio:.3f}", flush=True)
        rows.append({"file": kind, "stored": stored, "held": held, "ratio": ratio, **row})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
