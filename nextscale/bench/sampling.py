"""How long sampling and the tokenizer take, beside what the same arithmetic would take at this machine's own rates.

The roofline ratio: measured time / (operations / rate), the operations counted from the configs (`flops`), the rates of
matrix products and convolutions measured in the same process just before and after, since machines are noisy. Prints
nothing and changes nothing of torch's.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import presets
from nextscale.config import TransformerConfig
from nextscale.errors import InputError
from nextscale.machine import flops
from nextscale.machine.flops import Convolution, Work
from nextscale.machine.precision import Precision
from nextscale.pipeline import Pipeline, Step
from nextscale.sampling.guidance import Guidance, guided_scales
from nextscale.sampling.settings import Settings
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.transformer import VAR

TRIES = 3  # of which the best counts: what disturbs a kernel only ever makes it slower
CALLS = 10  # in a row on an accelerator, so that launching them is not what is measured
ROWS = {"cpu": 512, "accelerator": 16384}  # of the matrix product, at least: enough to reach the machine's full rate
COPIED = 1 << 27  # bytes, far more than any cache holds

Scope = Literal["call", "process"]
Done = Callable[[], object]
Result = TypeVar("Result")


# -- the machine's own rates -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What the machine does at its best, right now."""

    matrix_flop_per_second: float
    convolution_flop_per_second: float
    memory_bytes_per_second: float
    """Read or written, by a copy."""

    def seconds(self, work: Work) -> float:
        """How long `work` would take if nothing but its arithmetic took time."""
        return work.matrix / self.matrix_flop_per_second + work.convolution / self.convolution_flop_per_second

    @staticmethod
    def mean(rates: Sequence[Rates]) -> Rates:
        return Rates(
            mean(rate.matrix_flop_per_second for rate in rates),
            mean(rate.convolution_flop_per_second for rate in rates),
            mean(rate.memory_bytes_per_second for rate in rates),
        )


class Gauge:
    """Measures `Rates` at shapes typical of a model; holds no memory in between.

    Arguments:
        rows, width: of the matrix product, (rows, width) by (width, 4 * width), as in a feed-forward network.
        convolution: its shape; run in whichever memory format is faster here.
        device, dtype: of both.
    """

    def __init__(
        self, rows: int, width: int, convolution: Convolution, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows = max(rows, ROWS["cpu" if device.type == "cpu" else "accelerator"])
        self.width, self.convolution = width, convolution
        self.device, self.dtype = device, dtype
        self.format = max((torch.channels_last, torch.contiguous_format), key=self._convolution_rate)

    def rates(self) -> Rates:
        return Rates(self.matrix_rate(), self._convolution_rate(self.format), self._memory_rate())

    @torch.no_grad()
    def matrix_rate(self) -> float:
        """Of the product alone, in operations a second."""
        x, weight = self._filled(self.rows, self.width), self._filled(4 * self.width, self.width)
        return 2 * x.numel() * len(weight) / self._best(lambda: F.linear(x, weight))

    @torch.no_grad()
    def _convolution_rate(self, memory_format: torch.memory_format) -> float:
        c = self.convolution
        x = self._filled(1, c.channels_in, c.height, c.width).to(memory_format=memory_format)
        weight = self._filled(c.channels_out, c.channels_in, c.kernel, c.kernel).to(memory_format=memory_format)
        return c.flops / self._best(lambda: F.conv2d(x, weight, padding=c.kernel // 2))

    def _memory_rate(self) -> float:
        source = torch.zeros(COPIED, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        return 2 * COPIED / self._best(lambda: target.copy_(source))

    def _filled(self, *shape: int) -> Tensor:
        """Not zeros: chips run faster on those."""
        return torch.linspace(-1, 1, math.prod(shape), device=self.device).view(shape).to(self.dtype)

    def _best(self, run: Done) -> float:
        calls = 1 if self.device.type == "cpu" else CALLS
        run()
        return min(seconds_of(lambda: [run() for _ in range(calls)], self.device) for _ in range(TRIES)) / calls


def seconds_of(run: Done, device: torch.device) -> float:
    """Wall-clock seconds until `run` and everything it started on the device is done."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# -- peak memory -------------------------------------------------------------------------------------------------------


def peak_memory(run: Callable[[], Result], device: torch.device) -> tuple[Result, int, Scope]:
    """What `run` gives, and the most bytes in use meanwhile, weights included: allocated on CUDA, else resident.

    "process" says that the system does not let the peak be reset, so that it is the process's since it began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return run(), torch.cuda.max_memory_allocated(device), "call"
    gc.collect()
    scope = _reset_resident_peak()
    return run(), _resident_peak(), scope


def _reset_resident_peak() -> Scope:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak
    except OSError:
        return "process"
    return "call"


def _resident_peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


# -- sampling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """`Pipeline.generate` at one batch size; medians over the repeats unless it says otherwise."""

    batch: int
    seconds_per_image: float
    """Of `Pipeline.generate`, decoding included."""
    scale_seconds_per_image: tuple[float, ...]
    """Scale by scale, of `Pipeline.stream`; what is done once a batch counts to the first."""
    decoder_seconds_per_image: float
    first_call_seconds: float
    """Of the first batch of this size, everything that is prepared once included."""
    roofline_seconds_per_image: float
    roofline_ratio: float
    """seconds_per_image over roofline_seconds_per_image, taken in each repeat."""
    weight_reading_seconds_per_batch: float
    """What reading the weights takes, at every scale anew: the floor for small batches on an accelerator."""
    peak_memory_bytes: int
    """Of the first call, weights included."""
    peak_memory_of: Scope
    matrix_flop_per_second: float
    convolution_flop_per_second: float
    memory_bytes_per_second: float
    matrix_flop_per_image: int
    convolution_flop_per_image: int
    seconds_of_repeats: tuple[float, ...]
    """Of each whole batch."""
    ratios_of_repeats: tuple[float, ...]


def sampling_work(
    pipe: Pipeline,
    *,
    guided: bool,
    until: int | None = None,
    step_weights: Sequence[float] = (),
    reach: int | None = None,
) -> Work:
    """All operations of an image: class, scales, canvas, decoder.

    Arguments:
        guided: two rows an image.
        until: from this scale on one row, if it is given.
        step_weights, reach: see `sampling.loop.generate`.
    """
    tokenizer, transformer = pipe.tokenizer.config, pipe.transformer.config
    count = len(transformer.scales)
    work = flops.condition_work(transformer, guided=guided) + flops.decoder_work(tokenizer)
    for k in range(count):
        second = guided and k < (count if until is None else until)
        work += flops.scale_work(transformer, k, guided=second, reach=reach) + flops.painting_work(tokenizer)
        work += flops.step_guidance_work(transformer, k) if any(step_weights[k : k + 1]) else Work()
    return work


def weight_bytes(pipe: Pipeline) -> int:
    """Bytes of weights read to paint a batch: blocks and head once a scale; modulations, text and decoder once."""
    config, low = pipe.transformer.config, pipe.dtype.itemsize
    block = 4 * config.width**2 + config.width * (config.opened + config.feed_forward)
    if config.text is not None:
        block += 2 * config.width * config.text.width  # query, out
    head = config.width * config.logits * torch.float32.itemsize
    modulations = 6 * config.width**2 * (1 if config.shared_modulation else config.depth) * low
    shapes = flops.decoder_convolutions(pipe.tokenizer.config)
    decoder = sum(shape.channels_in * shape.channels_out * shape.kernel**2 for shape in shapes) * low
    return len(config.scales) * (config.depth * block * low + head) + modulations + _text_bytes(config, low) + decoder


def _text_bytes(config: TransformerConfig, low: int) -> int:
    """Of the encoder's layers, of the keys and values that each block makes, and of the mean's projection."""
    if config.text is None:
        return 0
    layers = (12 * config.text.depth + 2 * config.depth) * config.text.width**2
    return (layers + config.width * config.text.width) * low


def measure_sampling(
    pipe: Pipeline,
    batch: int,
    *,
    guidance: float | Sequence[float] | Guidance = 1.5,
    top_k: int | Sequence[int] = 900,
    top_p: float | Sequence[float] = 0.96,
    step_guidance: float | Sequence[float] = 0.0,
    reach: int | None = None,
    prompt: str | None = None,
    repeats: int = 5,
    done: Done = lambda: None,
) -> Sampling:
    """Time `pipe.generate` of `batch` images, and the same scale by scale.

    Arguments:
        guidance, top_k, top_p, step_guidance, reach: as `Pipeline.generate` takes them.
        prompt: of all images beside their classes, for a model that reads; its work is counted either way.
        repeats: rates, a whole batch, a batch scale by scale, rates again; so many times.
        done: called after the first call and after each repeat.
    """
    config = pipe.transformer.config
    if config.order != "scale":
        raise InputError(f"expected a next-scale model, whose scales are timed, got one of order {config.order}")
    settings = Settings(guidance, top_k, top_p, step_guidance=step_guidance, reach=reach)
    dealt = settings.dealt(len(config.scales))
    until = guided_scales(dealt.weights)
    labels = [i % config.classes for i in range(batch)]
    given: dict[str, Any] = {"labels": labels, "prompts": prompt, **vars(settings)}

    def whole() -> object:
        return pipe.generate(**given)

    first, peak, scope = peak_memory(lambda: seconds_of(whole, pipe.device), pipe.device)
    done()
    work = sampling_work(pipe, guided=until > 0, until=until, step_weights=dealt.step_weights, reach=dealt.reach)
    gauge = _gauge(pipe, batch * (2 if until == len(config.scales) else 1))
    totals, splits, rates = [], [], []
    for _ in range(repeats):
        before = gauge.rates()
        totals.append(seconds_of(whole, pipe.device))
        splits.append([*_split(pipe, given)])
        rates.append(Rates.mean([before, gauge.rates()]))
        done()
    ratios = [total / batch / rate.seconds(work) for total, rate in zip(totals, rates, strict=True)]
    *scales, decoder = (median(parts) / batch for parts in zip(*splits, strict=True))
    return Sampling(
        batch=batch,
        seconds_per_image=median(totals) / batch,
        scale_seconds_per_image=tuple(scales),
        decoder_seconds_per_image=decoder,
        first_call_seconds=first,
        roofline_seconds_per_image=median(rate.seconds(work) for rate in rates),
        roofline_ratio=median(ratios),
        weight_reading_seconds_per_batch=median(weight_bytes(pipe) / rate.memory_bytes_per_second for rate in rates),
        peak_memory_bytes=peak,
        peak_memory_of=scope,
        matrix_flop_per_second=median(rate.matrix_flop_per_second for rate in rates),
        convolution_flop_per_second=median(rate.convolution_flop_per_second for rate in rates),
        memory_bytes_per_second=median(rate.memory_bytes_per_second for rate in rates),
        matrix_flop_per_image=work.matrix,
        convolution_flop_per_image=work.convolution,
        seconds_of_repeats=tuple(totals),
        ratios_of_repeats=tuple(ratios),
    )


def _gauge(pipe: Pipeline, rows: int) -> Gauge:
    """At the feed-forward network of the largest scale, and the decoder's heaviest convolution."""
    config, shapes = pipe.transformer.config, flops.decoder_convolutions(pipe.tokenizer.config)
    rows *= max(config.scales.lengths)
    return Gauge(rows, config.width, flops.heaviest(shapes), device=pipe.device, dtype=pipe.dtype)


def _split(pipe: Pipeline, given: Mapping[str, Any]) -> Iterator[float]:
    """Seconds of each scale of a batch, then of the decoder."""
    steps = pipe.stream(**given)
    taken: list[Step] = []
    for _ in pipe.transformer.config.scales:
        yield seconds_of(lambda: taken.append(next(steps)), pipe.device)
    assert next(steps, None) is None  # which lets go of the cache
    yield seconds_of(taken[-1].preview, pipe.device)


# -- the tokenizer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokenizing:
    """Pictures to tokens and back at one batch size; medians over the repeats unless it says otherwise."""

    batch: int
    encoded_pictures_per_second: float
    """In float32, as `MultiScaleVQVAE.encode` always is: which code is nearest must not depend on the precision."""
    decoded_pictures_per_second: float
    """In the pipeline's precision."""
    encoder_roofline_ratio: float
    """Measured time over that of the same operations at the rates of float32, taken in each repeat."""
    decoder_roofline_ratio: float
    """The same at the rates of the pipeline's precision."""
    first_encoding_seconds: float
    first_decoding_seconds: float
    peak_memory_bytes: int
    """Of the first encoding and decoding, weights included."""
    peak_memory_of: Scope
    encoding_seconds_of_repeats: tuple[float, ...]
    """Of each whole batch."""
    decoding_seconds_of_repeats: tuple[float, ...]


def tokenizer_pipeline(name: str, *, device: str | torch.device, precision: Precision) -> Pipeline:
    """The tokenizer of a preset with random weights; the transformer beside it is tiny and not measured."""
    config = presets.get(name).tokenizer
    tiny = TransformerConfig(
        scales=config.scales,
        codebook_size=config.codebook_size,
        code_channels=config.code_channels,
        classes=1,
        depth=1,
        width=32,
        heads=1,
        feed_forward=32,
        normalized_attention=True,
        shared_modulation=True,
    )
    return Pipeline(MultiScaleVQVAE(config), VAR(tiny), device=device, precision=precision)


@torch.no_grad()
def measure_tokenizer(pipe: Pipeline, batch: int, *, repeats: int = 5, done: Done = lambda: None) -> Tokenizing:
    """Time encoding and decoding of `batch` pictures; `done` is called after the first time and after each repeat."""
    config, device = pipe.tokenizer.config, pipe.device
    count = batch * 3 * config.height * config.width
    images = torch.linspace(-1, 1, count, device=device).view(batch, 3, config.height, config.width)
    total = config.scales.total
    tokens_BL = torch.arange(batch * total, device=device).remainder(config.codebook_size).view(batch, total)

    def encode() -> None:
        pipe.tokenizer.encode(images)

    def decode() -> None:
        *_, canvas = pipe.tokenizer.quantizer.canvases(tokens_BL)
        pipe.show(canvas)

    first, peak, scope = peak_memory(lambda: [seconds_of(run, device) for run in (encode, decode)], device)
    done()
    gauges = _tokenizer_gauges(pipe, batch)
    works = [flops.encoder_work(config) + flops.quantizer_work(config), flops.decoder_work(config)]
    works[1] += Work(convolution=len(config.scales) * flops.painting_work(config).convolution)
    seconds: list[list[float]] = []
    ratios: list[list[float]] = []
    for _ in range(repeats):
        before = [gauge.rates() for gauge in gauges]
        seconds.append([seconds_of(run, device) for run in (encode, decode)])
        rates = [Rates.mean([rate, gauge.rates()]) for rate, gauge in zip(before, gauges, strict=True)]
        roofs = [batch * rate.seconds(work) for rate, work in zip(rates, works, strict=True)]
        ratios.append([taken / roof for taken, roof in zip(seconds[-1], roofs, strict=True)])
        done()
    encoding, decoding = zip(*seconds, strict=True)
    encoder_ratios, decoder_ratios = zip(*ratios, strict=True)
    return Tokenizing(
        batch=batch,
        encoded_pictures_per_second=batch / median(encoding),
        decoded_pictures_per_second=batch / median(decoding),
        encoder_roofline_ratio=median(encoder_ratios),
        decoder_roofline_ratio=median(decoder_ratios),
        first_encoding_seconds=first[0],
        first_decoding_seconds=first[1],
        peak_memory_bytes=peak,
        peak_memory_of=scope,
        encoding_seconds_of_repeats=encoding,
        decoding_seconds_of_repeats=decoding,
    )


def _tokenizer_gauges(pipe: Pipeline, batch: int) -> tuple[Gauge, Gauge]:
    """Of the encoder and of the decoder."""
    config = pipe.tokenizer.config
    width, rows = config.channels * config.multipliers[-1], batch * config.scales.lengths[-1]
    encoder, decoder = flops.encoder_convolutions(config), flops.decoder_convolutions(config)
    return (
        Gauge(rows, width, flops.heaviest(encoder), device=pipe.device, dtype=torch.float32),
        Gauge(rows, width, flops.heaviest(decoder), device=pipe.device, dtype=pipe.dtype),
    )
