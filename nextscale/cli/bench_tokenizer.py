"""`nextscale bench tokenizer`: pictures a second, encoded, decoded or trained on, with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextscale.cli import bench
from nextscale.cli.options import Batches, Json, Precision, Threads
from nextscale.cli.output import check_json, console, progress, table, write_json

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from nextscale.bench.sampling import Tokenizing
    from nextscale.bench.training import Training
    from nextscale.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class BenchTokenizer:
    """Time encoding and decoding, or training steps, with random weights.

    ratio: time over that of the arithmetic alone, at rates measured meanwhile
    """

    preset: str = "var-d16"
    """Model whose tokenizer to time; `nextscale presets` lists them."""
    batch: Batches = (1, 4, 16)
    """Pictures at a time, one size or several."""
    train: bool = False
    """Time training steps instead, beside a plain float32 loop over the same network."""
    repeats: int = 5
    """Repeats of each measurement; the medians are reported."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: Precision = "auto"
    """Of the decoder, or of training; without --train the encoder is always fp32. auto is bf16 where the hardware is
    fast at it, else fp32."""
    threads: Threads = None
    """CPU threads (default: torch's own choice)."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the tables."""

    def run(self) -> None:
        bench.check(self.batch, self.repeats, self.threads)
        check_json(self.json)
        from nextscale.bench.sampling import tokenizer_pipeline
        from nextscale.machine.precision import find_device

        device = find_device(self.device)
        if self.train:
            self._time_training(device)
            return
        with bench.threads(self.threads):
            pipe = tokenizer_pipeline(self.preset, device=device, precision=self.precision)
            measured = self._measure(pipe)
            setting = bench.setting(pipe.device, pipe.arithmetic.name, self.preset, self.repeats)
        self._report(setting, _table(measured), measured)

    def _report(self, setting: dict[str, Any], drawn: Table, measured: Sequence[Tokenizing | Training]) -> None:
        if self.json is not None:
            write_json(self.json, setting | {"batches": [dataclasses.asdict(row) for row in measured]})
        if str(self.json) != "-":
            console().print(drawn, "", sep="\n")
            bench.tell(setting)

    def _time_training(self, device: torch.device) -> None:
        from nextscale import presets
        from nextscale.bench.training import measure_training
        from nextscale.machine.precision import Arithmetic
        from nextscale.training.optimization import training_dtype

        config, dtype = presets.get(self.preset).tokenizer, training_dtype(self.precision, device)
        measured = []
        with bench.threads(self.threads), progress() as bar:
            task = bar.add_task("training", total=len(self.batch) * (1 + self.repeats))
            for size in self.batch:
                bar.update(task, description=f"batch {size}")
                measured.append(
                    measure_training(
                        config,
                        size,
                        device=device,
                        precision=self.precision,
                        repeats=self.repeats,
                        done=lambda: bar.advance(task),
                    )
                )
            setting = bench.setting(device, Arithmetic(dtype).name, self.preset, self.repeats)
        self._report(setting, _training_table(measured), measured)

    def _measure(self, pipe: Pipeline) -> list[Tokenizing]:
        from nextscale.bench.sampling import measure_tokenizer

        measured = []
        with progress() as bar:
            task = bar.add_task("tokenizer", total=len(self.batch) * (1 + self.repeats))
            for size in self.batch:
                bar.update(task, description=f"batch {size}")
                measured.append(measure_tokenizer(pipe, size, repeats=self.repeats, done=lambda: bar.advance(task)))
        return measured


def _table(measured: list[Tokenizing]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            row.batch,
            f"{row.encoded_pictures_per_second:.2f}",
            f"{row.encoder_roofline_ratio:.2f}",
            f"{row.decoded_pictures_per_second:.2f}",
            f"{row.decoder_roofline_ratio:.2f}",
            f"{row.peak_memory_bytes / 1e9:.2f}",
        )
        for row in measured
    ]
    names = ("batch",), ("encoded/s", "ratio", "decoded/s", "ratio", "peak GB")
    return table("Tokenizer, pictures a second", *names, rows)


def _training_table(measured: list[Training]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            row.batch,
            f"{row.pictures_per_second:.2f}",
            f"{row.seconds_per_step:.2f}",
            f"{row.roofline_ratio:.2f}",
            f"{row.plain_seconds_per_step:.2f}",
            f"{row.speedup:.2f}x",
            f"{row.peak_memory_bytes / 1e9:.2f}",
        )
        for row in measured
    ]
    names = ("batch",), ("pictures/s", "s a step", "ratio", "plain fp32", "faster", "peak GB")
    return table("Training of the tokenizer", *names, rows)
