"""Laws of how soon a picture is there: what sampling does not need is not imported, nor looked at by the collector."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from nextscale.cli import memory

# torch's compiler and what it brings; then what only training, evaluation, plots, the hub and the studio need
UNNEEDED = {"torch._dynamo", "torch._inductor", "sympy", "scipy", "matplotlib", "torchmetrics", "tensorboard"}
UNNEEDED |= {"huggingface_hub", "transformers", "tokenizers", "gradio", "pandas", "webdataset"}

EVERYTHING = """
import sys, torch
from nextscale import Pipeline
pipe = Pipeline.load(sys.argv[1])
made = pipe.generate(labels=[0], seeds=[0])
mask = torch.zeros(32, 32, dtype=torch.bool)
mask[8:24, 8:24] = True
pipe.edit(made.images, mask, labels=[0], seeds=[1])
pipe.reconstruct(made.images)
pipe.transformer(torch.tensor([0]), pipe.tokenizer.teacher_inputs(made.tokens))
print(*sys.modules, file=sys.stderr)
"""


def imported(*command: str) -> set[str]:
    """Modules that a process has imported, by what it says on stderr: a word each, among others."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=True)
    return {word for line in done.stderr.splitlines() for word in line.split("|")[-1].split()}


@pytest.mark.slow
def test_sampling_imports_nothing_that_it_does_not_need(model: Path, tmp_path: Path) -> None:
    """The whole program, from its options to the grid; `python -X importtime` names every module."""
    arguments = ("sample", "--model", str(model), "--label-index", "0", "--out", str(tmp_path))
    modules = imported("-X", "importtime", "-m", "nextscale", *arguments)
    assert {"torch", "nextscale.sampling.engine"} <= modules
    assert not modules & UNNEEDED
    assert (tmp_path / "grid.png").exists()


@pytest.mark.slow
def test_no_use_of_a_pipeline_imports_what_it_does_not_need(model: Path) -> None:
    """In Python: loading, painting, editing, reconstructing, teacher forcing."""
    modules = imported("-c", EVERYTHING, str(model))
    assert {"torch", "nextscale.sampling.editing"} <= modules
    assert not modules & UNNEEDED


def test_what_is_imported_is_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector rests meanwhile, and is back afterwards, also after an exception; what was there is set aside."""
    monkeypatch.delitem(sys.modules, "torch")
    frozen = gc.get_freeze_count()
    try:
        with pytest.raises(ZeroDivisionError, match="while off"), memory.imports():
            raise ZeroDivisionError("while on" if gc.isenabled() else "while off")
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_where_torch_is_there_the_collector_is_left_alone() -> None:
    """As in a program that calls ours, and in these tests."""
    import torch

    assert torch.__name__ in sys.modules
    frozen = gc.get_freeze_count()
    with memory.imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
