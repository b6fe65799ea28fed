"""`nextscale bench sample`: how long sampling takes, beside what its arithmetic alone would take."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nextscale.cli import bench
from nextscale.cli.options import (
    Batches,
    Json,
    NumberPerScale,
    Reach,
    SamplingPrecision,
    Text,
    Threads,
    Until,
    WholePerScale,
)
from nextscale.cli.output import check_json, console, progress, say, table, write_json
from nextscale.cli.painting import schedule

if TYPE_CHECKING:
    from rich.table import Table

    from nextscale.bench.sampling import Sampling
    from nextscale.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class BenchSample:
    """Time sampling, decoding included, with random weights.

    ratio: time over that of the arithmetic alone, at rates measured meanwhile
    """

    preset: str = "var-d16"
    """Model to time; `nextscale presets` lists them."""
    batch: Batches = (1, 4, 16)
    """Images per batch, one size or several."""
    prompt: Text = None
    """Prompt of all images, beside their classes, for a preset that reads text."""
    guidance: NumberPerScale = 1.5
    """Strength of classifier-free guidance at the last scale, or one per scale; 0 is none, and half of the work."""
    guidance_until: Until = None
    """No guidance from this scale on, counted from 0."""
    top_k: WholePerScale = 900
    """Sample from the k likeliest codes; 0 is all."""
    top_p: NumberPerScale = 0.96
    """Sample from the likeliest codes that together have this probability; 0 is all."""
    step_guidance: NumberPerScale = 0.0
    """Strength of guidance by the scale before, one value or one per scale."""
    reach: Reach = None
    """Number of scales a token attends to, its own included; 1 needs no cache."""
    repeats: int = 5
    """Repeats of each measurement; the medians are reported."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: SamplingPrecision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32; int8 is for CPUs."""
    threads: Threads = None
    """CPU threads (default: torch's own choice)."""
    json: Json = None
    """Also write all metrics as JSON; - is stdout, without the tables."""

    def run(self) -> None:
        bench.check(self.batch, self.repeats, self.threads)
        check_json(self.json)
        from nextscale.machine.precision import find_device
        from nextscale.pipeline import Pipeline

        device = find_device(self.device)
        with bench.threads(self.threads):
            pipe = Pipeline.from_preset(self.preset, device=device, precision=self.precision)
            measured = self._measure(pipe)
            setting = bench.setting(pipe.device, pipe.arithmetic.name, self.preset, self.repeats)
        setting |= {"guidance": self.guidance, "top_k": self.top_k, "top_p": self.top_p}
        others = {
            "prompt": self.prompt,
            "guidance_until": self.guidance_until,
            "step_guidance": self.step_guidance or None,
            "reach": self.reach,
        }
        setting |= {name: value for name, value in others.items() if value is not None}
        if self.json is not None:
            write_json(self.json, setting | {"batches": [dataclasses.asdict(row) for row in measured]})
        if str(self.json) != "-":
            console().print(_totals(measured), "", _scales(pipe, measured), "", sep="\n")
            _tell(setting, measured)

    def _measure(self, pipe: Pipeline) -> list[Sampling]:
        from nextscale.bench.sampling import measure_sampling

        measured = []
        with progress() as bar:
            task = bar.add_task("sampling", total=len(self.batch) * (1 + self.repeats))
            for size in self.batch:
                bar.update(task, description=f"batch {size}")
                measured.append(
                    measure_sampling(
                        pipe,
                        size,
                        guidance=schedule(self.guidance, self.guidance_until),
                        top_k=self.top_k,
                        top_p=self.top_p,
                        step_guidance=self.step_guidance,
                        reach=self.reach,
                        prompt=self.prompt,
                        repeats=self.repeats,
                        done=lambda: bar.advance(task),
                    )
                )
        return measured


def _totals(measured: list[Sampling]) -> Table:
    rows: list[tuple[object, ...]] = [
        (
            row.batch,
            f"{row.seconds_per_image:.4f}",
            f"{sum(row.scale_seconds_per_image):.4f}",
            f"{row.decoder_seconds_per_image:.4f}",
            f"{row.roofline_seconds_per_image:.4f}",
            f"{row.roofline_ratio:.2f}",
            f"{row.first_call_seconds:.2f}",
            f"{row.peak_memory_bytes / 1e9:.2f}",
        )
        for row in measured
    ]
    names = ("batch",), ("s/image", "scales", "decoder", "roofline", "ratio", "first call s", "peak GB")
    return table("Sampling, seconds per image", *names, rows)


def _scales(pipe: Pipeline, measured: list[Sampling]) -> Table:
    columns = measured[:8]  # what 80 characters hold; the JSON has them all
    parts = [*map(str, pipe.transformer.config.scales.to_list()), "decoder"]
    times = zip(*((*row.scale_seconds_per_image, row.decoder_seconds_per_image) for row in columns), strict=True)
    rows: list[tuple[object, ...]] = [
        (part, *(f"{seconds * 1e3:.2f}" for seconds in of_part)) for part, of_part in zip(parts, times, strict=True)
    ]
    names = ("scale",), tuple(f"B={row.batch}" for row in columns)
    return table("ms per image", *names, rows)


def _tell(setting: dict[str, object], measured: list[Sampling]) -> None:
    """The setting, and the machine's own rates at the last size."""
    bench.tell(setting)
    last = measured[-1]
    say(
        f"rates: matrix products {last.matrix_flop_per_second / 1e9:,.0f} GFLOP/s, "
        f"convolutions {last.convolution_flop_per_second / 1e9:,.0f} GFLOP/s, "
        f"memory {last.memory_bytes_per_second / 1e9:,.0f} GB/s"
    )
    say(
        f"work: {last.matrix_flop_per_image / 1e9:,.1f} GFLOP of matrix products and "
        f"{last.convolution_flop_per_image / 1e9:,.1f} of convolutions an image; reading the weights takes "
        f"{last.weight_reading_seconds_per_batch:.4f} s a batch"
    )
