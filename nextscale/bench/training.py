"""How long a step of tokenizer training takes, beside a plain loop over the same network and beside its arithmetic.

The plain loop is what one would write first: float32, channels first, no autocast, the same losses and optimiser. Both
are timed in turn, in one process, since machines are noisy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F

from nextscale.bench.sampling import Done, Gauge, Rates, Scope, peak_memory, seconds_of
from nextscale.config import TokenizerConfig
from nextscale.data import DataSet
from nextscale.data.pictures import Split, from_memory
from nextscale.machine import flops
from nextscale.machine.flops import Work
from nextscale.machine.precision import Precision
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.optimization import make_optimizer
from nextscale.training.recipes import Codebook, Recipe, TokenizerRecipe
from nextscale.training.tokenizer.stage import TokenizerStage

BACKWARD = 2  # a backward pass does twice the arithmetic of the forward one


@dataclass(frozen=True)
class Training:
    """A step at one batch size; medians over the repeats unless it says otherwise."""

    batch: int
    seconds_per_step: float
    """Of `TokenizerStage.update`: losses, backward, optimiser, codebook and average."""
    plain_seconds_per_step: float
    """Of the plain float32 loop."""
    speedup: float
    """The plain step's time over ours, taken in each repeat."""
    roofline_ratio: float
    """Our time over that of the arithmetic alone, at the rates of our precision in each repeat."""
    first_step_seconds: float
    peak_memory_bytes: int
    """Of our first step, weights and optimiser included."""
    peak_memory_of: Scope
    seconds_of_repeats: tuple[float, ...]
    plain_seconds_of_repeats: tuple[float, ...]

    @property
    def pictures_per_second(self) -> float:
        return self.batch / self.seconds_per_step


def measure_training(
    config: TokenizerConfig,
    batch: int,
    *,
    device: torch.device,
    precision: Precision,
    repeats: int = 5,
    done: Done = lambda: None,
) -> Training:
    """Time steps of `batch` pictures of noise; `done` is called after the first steps and after each repeat."""
    stage = _stage(config, batch, device=device, precision=precision)
    steps = iter(range(1, 1 << 30))
    ours = lambda: stage.update(next(steps), 1 << 30)  # noqa: E731 - one of two, side by side
    first, peak, scope = peak_memory(lambda: seconds_of(ours, device), device)
    plain = _plain_loop(config, batch, device)
    plain()
    done()
    width, cells = config.channels * config.multipliers[-1], batch * config.scales.lengths[-1]
    shape = flops.heaviest(flops.decoder_convolutions(config))
    gauge = Gauge(cells, width, shape, device=device, dtype=stage.dtype)
    times: list[tuple[float, float]] = []
    ratios = []
    for _ in range(repeats):
        before = gauge.rates()
        times.append((seconds_of(ours, device), seconds_of(plain, device)))
        rates = Rates.mean([before, gauge.rates()])
        ratios.append(times[-1][0] / (batch * rates.seconds(training_work(config))))
        done()
    mine, theirs = zip(*times, strict=True)
    return Training(
        batch=batch,
        seconds_per_step=median(mine),
        plain_seconds_per_step=median(theirs),
        speedup=median(slow / fast for fast, slow in times),
        roofline_ratio=median(ratios),
        first_step_seconds=first,
        peak_memory_bytes=peak,
        peak_memory_of=scope,
        seconds_of_repeats=mine,
        plain_seconds_of_repeats=theirs,
    )


def training_work(config: TokenizerConfig) -> Work:
    """Of a picture: forward and backward through the autoencoder."""
    forward = flops.encoder_work(config) + flops.quantizer_work(config) + flops.decoder_work(config)
    return Work(matrix=(1 + BACKWARD) * forward.matrix, convolution=(1 + BACKWARD) * forward.convolution)


def _recipe(batch: int) -> Recipe:
    return Recipe(
        batch=batch,
        learning_rate=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0.005,
        warmup_steps=0,
        final_rate=1.0,
        clip=1.0,
    )


def _stage(config: TokenizerConfig, batch: int, *, device: torch.device, precision: Precision) -> TokenizerStage:
    """On noise, with the codebook's care but nothing that is looked at through another network."""
    noise = torch.randint(
        0, 256, (2 * batch, 3, config.height, config.width), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    split = Split(
        classes=("noise",),
        labels=torch.zeros(len(noise), dtype=torch.int64),
        names=tuple(map(str, range(len(noise)))),
        fingerprint="noise",
        fetch=from_memory([*noise]),
        height=config.height,
        width=config.width,
    )
    data = DataSet(train=split, validation=split, classes=("noise",), unreadable=[])
    recipe = TokenizerRecipe(optimization=_recipe(batch), codebook=Codebook(start="random"))
    return TokenizerStage(config, data, recipe=recipe, device=device, precision=precision)


def _plain_loop(config: TokenizerConfig, batch: int, device: torch.device) -> Callable[[], None]:
    model = MultiScaleVQVAE(config).to(device)
    optimizer = make_optimizer(model, _recipe(batch))
    count = batch * 3 * config.height * config.width
    images = torch.linspace(-1, 1, count, device=device).view(batch, 3, config.height, config.width)

    def step() -> None:
        optimizer.zero_grad()
        quantized = model.quantize(model.features(images))
        painted = model.decoder(model.post_quantizer(quantized.f_hat))
        loss = F.mse_loss(painted, images) + 0.2 * F.l1_loss(painted, images) + quantized.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step
