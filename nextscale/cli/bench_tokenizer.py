"""`nextscale bench tokenizer`: pictures a second, encoded and decoded, with random weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nextscale.cli import bench
from nextscale.cli.options import Batches, Json, Precision, Threads
from nextscale.cli.output import check_json, console, progress, table, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from nextscale.benchmark import Tokenizing
    from nextscale.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class BenchTokenizer:
    """Pictures a second, encoded and decoded; the weights are random.

    ratio: time over that of the arithmetic alone, at rates measured meanwhile
    """

    preset: str = "var-d16"
    """Model whose tokenizer is timed; nextscale presets lists them."""
    batch: Batches = (1, 4, 16)
    """Pictures at a time, one size or several."""
    repeats: int = 5
    """Times each size is measured; medians are reported."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA where there is some."""
    precision: Precision = "auto"
    """Of the decoder; the encoder is always fp32. auto is bf16 where the hardware is fast at it, else fp32."""
    threads: Threads = None
    """CPU threads (default: torch's own choice)."""
    json: Json = None
    """Also write all figures as JSON; - is stdout, without the tables."""

    def run(self) -> None:
        bench.check(self.batch, self.repeats, self.threads)
        check_json(self.json)
        from nextscale.benchmark import tokenizer_pipeline
        from nextscale.precision import find_device

        device = find_device(self.device)
        with bench.threads(self.threads):
            pipe = tokenizer_pipeline(self.preset, device=device, precision=self.precision)
            measured = self._measure(pipe)
            setting = bench.setting(pipe, self.preset, self.repeats)
        if str(self.json) != "-":
            console().print(_table(measured), "", sep="\n")
            bench.tell(setting)
        if self.json is not None:
            write_json(self.json, setting | {"batches": [dataclasses.asdict(row) for row in measured]})

    def _measure(self, pipe: Pipeline) -> list[Tokenizing]:
        from nextscale.benchmark import measure_tokenizer

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
