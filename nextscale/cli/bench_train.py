"""`nextscale bench train`: how long a step of transformer training takes, from cached tokens, with random weights."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nextscale.cli import bench
from nextscale.cli.options import Depth, Json, Precision, Threads
from nextscale.cli.output import at_least, check_json, console, progress, say, table, write_json

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from nextscale.bench.transformer import MuonCost, NaiveStep, TransformerTraining
    from nextscale.presets import Preset

Batches = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N", help_behavior_hint="(default: 4)")]
Compared = Annotated[Literal["naive"] | None, tyro.conf.arg(metavar="naive", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class BenchTrain:
    """Time a training step of the transformer, from cached tokens, with random weights.

    used: share of the machine's rate of matrix products, measured meanwhile, that the model's work takes up
    """

    preset: str = "var-d16"
    """Model to train; `nextscale presets` lists them."""
    depth: Depth = None
    """Blocks, with width = 64 * depth and depth heads (default: the preset's)."""
    batch: Batches = (4,)
    """Images per step, one size or several."""
    compare: Compared = None
    """Also time a naive step: from pictures, float32, one mask over all positions, all logits at once."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon also measures how much longer a step takes than with AdamW."""
    compile: bool = False
    """Run the blocks through torch.compile."""
    recompute: bool = False
    """Recompute activations inside blocks in the backward pass."""
    repeats: int = 5
    """Repeats of each measurement; the medians are reported."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32; the naive step is always fp32."""
    threads: Threads = None
    """CPU threads (default: torch's own choice)."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the tables."""

    def run(self) -> None:
        bench.check(self.batch, self.repeats, self.threads)
        at_least("--depth", 1, 1 if self.depth is None else self.depth)
        check_json(self.json)
        from nextscale import presets
        from nextscale.cli import memory
        from nextscale.machine.precision import Arithmetic, find_device
        from nextscale.training.optimization import training_dtype

        device = find_device(self.device)
        dtype, preset = training_dtype(self.precision, device), presets.get(self.preset)
        config = preset.transformer if self.depth is None else preset.transformer.of_depth(self.depth)
        memory.keep_freed()
        with bench.threads(self.threads):
            measured = self._measure(dataclasses.replace(preset, transformer=config), device)
            setting = bench.setting(device, Arithmetic(dtype).name, self._name, self.repeats)
        setting |= {
            "compile": self.compile,
            "recompute": self.recompute,
            "optimizer": self.optimizer,
            "parameters": config.parameters,
        }
        if self.json is not None:
            write_json(self.json, setting | {"batches": [dataclasses.asdict(row) for row in measured]})
        if str(self.json) != "-":
            _show(measured)
            bench.tell(setting)
            last = measured[-1]
            say(
                f"rate: matrix products {last.matrix_flop_per_second / 1e9:,.0f} GFLOP/s; work: "
                f"{last.matrix_flop_per_image / 1e9:,.1f} GFLOP an image, forward and backward"
            )

    @property
    def _name(self) -> str:
        return self.preset if self.depth is None else f"{self.preset} at depth {self.depth}"

    def _measure(self, preset: Preset, device: torch.device) -> list[TransformerTraining]:
        from nextscale.bench.transformer import measure_transformer_training

        measured = []
        with progress() as bar:
            task = bar.add_task("training", total=len(self.batch) * (1 + self.repeats))
            for size in self.batch:
                _return_freed_memory()
                bar.update(task, description=f"batch {size}")
                measured.append(
                    measure_transformer_training(
                        preset.tokenizer,
                        preset.transformer,
                        size,
                        device=device,
                        precision=self.precision,
                        recompute=self.recompute,
                        compiled=self.compile,
                        naive=self.compare == "naive",
                        optimizer=self.optimizer,
                        repeats=self.repeats,
                        done=lambda: bar.advance(task),
                    )
                )
        return measured


def _return_freed_memory() -> None:
    """To the system, so that the size before does not count to the peak of the next."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _show(measured: list[TransformerTraining]) -> None:
    console().print(_steps(measured), "", sep="\n")
    compared = [(row.batch, row.naive) for row in measured if row.naive is not None]
    if compared:
        console().print(_compared(compared), "", sep="\n")
    by_muon = [(row.batch, row.muon) for row in measured if row.muon is not None]
    if by_muon:
        console().print(_added(by_muon), "", sep="\n")


def _added(measured: list[tuple[int, MuonCost]]) -> Table:
    rows: list[tuple[object, ...]] = [
        (batch, f"{cost.update_seconds:.3f}", f"{cost.adamw_update_seconds:.3f}", f"{cost.added:+.1%}")
        for batch, cost in measured
    ]
    return table("What Muon costs", ("batch",), ("s an update", "by AdamW", "a step"), rows)


def _steps(measured: list[TransformerTraining]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            row.batch,
            f"{row.images_per_second:.2f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.seconds_per_step:.3f}",
            f"{row.utilization:.0%}",
            f"{row.first_step_seconds:.2f}",
            f"{row.peak_memory_bytes / 1e9:.2f}",
        )
        for row in measured
    ]
    names = ("batch",), ("images/s", "tokens/s", "s a step", "used", "first step s", "peak GB")
    return table("Training of the transformer", *names, rows)


def _compared(measured: list[tuple[int, NaiveStep]]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            batch,
            f"{naive.seconds_per_step:.2f}",
            f"{naive.encoding_seconds_per_step:.2f}",
            f"{naive.speedup:.2f}x",
            f"{naive.loss:.4f}",
            f"{naive.loss_difference:+.0e}",
            f"{naive.loss_difference_in_float32:+.0e}",
            f"{naive.gradient_difference:.2%}",
        )
        for batch, naive in measured
    ]
    names = ("batch",), ("s a step", "encoding", "ours faster", "loss", "ours", "in fp32", "gradients")
    return table("Beside a naive step; how far ours is from its loss and gradients", *names, rows)
