"""How long a step of transformer training takes, beside its arithmetic and beside a naive step of the same model.

Ours begins with cached tokens. The naive one is what one would write first, and what the release does: pictures go
through the tokenizer's encoder in each step, everything is float32, attention is masked over all positions by all
positions, all logits exist at once. Both are timed in turn, in one process, since machines are noisy.

Shapes: B images, L positions, C code channels, V codes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.bench.sampling import Done, Gauge, Scope, peak_memory, seconds_of
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.machine import flops
from nextscale.machine.flops import Convolution, Work
from nextscale.machine.precision import Precision, lowered
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.training.optimization import Optimization, make_optimizer, training_dtype
from nextscale.training.recipes import Recipe
from nextscale.training.transformer.learner import Learner
from nextscale.transformer import VAR, DropPath
from nextscale.transformer.layers import Block

BACKWARD = 2  # a backward pass does twice the arithmetic of the forward one
ANY = Convolution(32, 32, 3, 8, 8)  # a gauge wants one; a transformer has none


@dataclass(frozen=True)
class NaiveStep:
    """The same step done naively, and how far apart the two are on the same weights and tokens."""

    seconds_per_step: float
    encoding_seconds_per_step: float
    """Of these, for the tokens of the pictures."""
    speedup: float
    """The naive step's time over ours, taken in each repeat."""
    loss: float
    """Of the naive step, in nats."""
    loss_difference: float
    """Ours less that."""
    loss_difference_in_float32: float
    """The same with our products in float32."""
    gradient_difference: float
    """|ours - naive| / |naive| over all weights."""
    seconds_of_repeats: tuple[float, ...]


@dataclass(frozen=True)
class MuonCost:
    """What Muon takes more than AdamW, on the same gradients."""

    update_seconds: float
    """Of Muon for the matrices of the blocks and AdamW for the rest."""
    adamw_update_seconds: float
    """Of AdamW for all weights."""
    added: float
    """By how much a step is longer than one with AdamW, as a share of that, taken in each repeat."""


@dataclass(frozen=True)
class TransformerTraining:
    """A step at one batch size; medians over the repeats unless it says otherwise."""

    batch: int
    seconds_per_step: float
    """From tokens to updated weights: teacher inputs, loss, backward, clip, optimiser."""
    images_per_second: float
    tokens_per_second: float
    utilization: float
    """Share of the machine's rate of matrix products that the model's own work takes up, taken in each repeat. What is
    computed again in the backward pass does not count as work."""
    matrix_flop_per_second: float
    """The machine's rate, measured before and after each step."""
    matrix_flop_per_image: int
    """Forward and backward."""
    first_step_seconds: float
    """Compilation included."""
    peak_memory_bytes: int
    """Of our first step, weights and optimiser included."""
    peak_memory_of: Scope
    seconds_of_repeats: tuple[float, ...]
    naive: NaiveStep | None
    muon: MuonCost | None
    """Where the step is one with Muon."""


def step_work(config: TransformerConfig) -> Work:
    """Of an image: forward and backward through the transformer, without what the mask forbids."""
    scales = (flops.scale_work(config, k, guided=False) for k in range(len(config.scales)))
    forward = sum(scales, flops.condition_work(config, guided=False))
    return Work(matrix=(1 + BACKWARD) * forward.matrix)


def measure_transformer_training(
    tokenizer_config: TokenizerConfig,
    config: TransformerConfig,
    batch: int,
    *,
    device: torch.device,
    precision: Precision,
    recompute: bool = False,
    compiled: bool = False,
    naive: bool = False,
    optimizer: Literal["adamw", "muon"] = "adamw",
    repeats: int = 5,
    done: Done = lambda: None,
) -> TransformerTraining:
    """Time steps of `batch` images of random tokens; `done` is called after the first steps and after each repeat.

    Arguments:
        tokenizer_config, config: of one preset.
        recompute, compiled: as `Learner` takes them.
        naive: time the naive step too.
        optimizer: of our step; the naive one has AdamW.
    """
    dtype = training_dtype(precision, device)
    tokenizer = MultiScaleVQVAE(tokenizer_config).to(device).requires_grad_(False)
    if not naive:
        del tokenizer.encoder, tokenizer.decoder  # a cache needs neither
    model, recipe = _woken(VAR(config)).to(device), _recipe(batch, optimizer)
    ours = _Ours(tokenizer, model, recipe, dtype=dtype, recompute=recompute, compiled=compiled)
    first, peak, scope = peak_memory(lambda: seconds_of(ours.step, device), device)
    theirs = _Naive(tokenizer, model, batch) if naive else None
    apart = _apart(ours, theirs) if theirs else None
    if theirs:
        theirs.step()
    updates = _Updates(ours.optimization) if optimizer == "muon" else None
    done()
    gauge = Gauge(batch * config.scales.total, config.width, ANY, device=device, dtype=dtype)
    work = batch * step_work(config).matrix
    times, rates, naive_times, encoding_times = [], [], [], []
    for _ in range(repeats):
        before = gauge.matrix_rate()
        times.append(seconds_of(ours.step, device))
        rates.append((before + gauge.matrix_rate()) / 2)
        if updates:
            updates.measure(times[-1], device)
        if theirs:
            naive_times.append(seconds_of(theirs.step, device))
            encoding_times.append(seconds_of(theirs.encode, device))
        done()
    seconds = median(times)
    return TransformerTraining(
        batch=batch,
        seconds_per_step=seconds,
        images_per_second=batch / seconds,
        tokens_per_second=batch * config.scales.total / seconds,
        utilization=median(work / time / rate for time, rate in zip(times, rates, strict=True)),
        matrix_flop_per_second=median(rates),
        matrix_flop_per_image=step_work(config).matrix,
        first_step_seconds=first,
        peak_memory_bytes=peak,
        peak_memory_of=scope,
        seconds_of_repeats=tuple(times),
        naive=None
        if apart is None
        else NaiveStep(
            seconds_per_step=median(naive_times),
            encoding_seconds_per_step=median(encoding_times),
            speedup=median(slow / fast for slow, fast in zip(naive_times, times, strict=True)),
            loss=apart[0],
            loss_difference=apart[1],
            loss_difference_in_float32=apart[2],
            gradient_difference=apart[3],
            seconds_of_repeats=tuple(naive_times),
        ),
        muon=updates.cost() if updates else None,
    )


def dense_logits(model: VAR, labels_B: Tensor, inputs_BLC: Tensor) -> Tensor:
    """What `VAR.forward` gives, (B, L, V) float32, with one mask of all positions by all positions."""
    scales, condition = model.config.scales, model.condition(labels_B)
    x_BLD = torch.cat([model.embed_start(condition), model.embed_codes(inputs_BLC, 1, len(scales))], dim=1)
    allowed_LL = scales.block_causal_mask().to(x_BLD.device)
    bias_LL = x_BLD.new_zeros(allowed_LL.shape).masked_fill(~allowed_LL, -torch.inf)

    def look(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_LL.to(v.dtype), scale=scale)

    for block, modulations in zip(model.blocks, condition.blocks, strict=True):
        x_BLD = block(x_BLD, modulations, lambda k, v: (k, v), look)
    return model.through_head(model.before_head(x_BLD, condition))


class _Ours:
    """A step as the trainer makes it, from tokens."""

    def __init__(
        self,
        tokenizer: MultiScaleVQVAE,
        model: VAR,
        recipe: Recipe,
        *,
        dtype: torch.dtype,
        recompute: bool,
        compiled: bool,
    ) -> None:
        self.tokenizer, self.model, self.dtype = tokenizer, model, dtype
        self.learner = Learner(model, recompute=recompute, compiled=compiled)
        self.optimization, self.device = Optimization(model, recipe, dtype=dtype), model.positions.device
        self.tokens_BL, self.labels_B = _tokens(model.config, recipe.batch, self.device)

    def step(self) -> None:
        config = self.model.config
        paths = DropPath(0.1 * config.depth / 24, torch.Generator(self.device).manual_seed(0))
        self.optimization.update(((loss, {}) for loss in [self.loss(self.dtype, paths)]), 0, None)

    def loss(self, dtype: torch.dtype, paths: DropPath | None = None) -> Tensor:
        with lowered(self.device, dtype):
            inputs_BLC = self.tokenizer.teacher_inputs(self.tokens_BL)
            loss, _, _ = self.learner(self.labels_B, inputs_BLC, self.tokens_BL, paths)
        return loss


class _Naive:
    """A step from pictures, in float32, with a copy of the weights of `model`."""

    def __init__(self, tokenizer: MultiScaleVQVAE, model: VAR, batch: int) -> None:
        config, self.tokenizer = tokenizer.config, tokenizer
        self.model = VAR(model.config, seed=None)
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.model.load_state_dict(weights, assign=True)
        self.model.requires_grad_()
        self.optimizer, device = make_optimizer(self.model, _recipe(batch)), model.positions.device
        count = batch * 3 * config.height * config.width
        self.images = torch.linspace(-1, 1, count, device=device).view(batch, 3, config.height, config.width)
        self.labels_B = _tokens(model.config, batch, device)[1]

    def encode(self) -> Tensor:
        with torch.no_grad():
            return self.tokenizer.encode(self.images)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.encode()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()

    def loss(self, tokens_BL: Tensor) -> Tensor:
        logits_BLV = dense_logits(self.model, self.labels_B, self.tokenizer.teacher_inputs(tokens_BL))
        return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())


class _Updates:
    """Times of the update alone, by Muon and by AdamW for all weights, whose gradients are those of the step before."""

    def __init__(self, muon: Optimization) -> None:
        self.muon = muon
        self.adamw = make_optimizer(muon.model, dataclasses.replace(muon.recipe, optimizer="adamw"))
        self.times: list[tuple[float, float, float]] = []
        self.adamw.step()  # which makes its moments

    def measure(self, step: float, device: torch.device) -> None:
        """After a step that has taken so many seconds."""
        muon = seconds_of(lambda: [optimizer.step() for optimizer in self.muon.optimizers], device)
        self.times.append((step, muon, seconds_of(self.adamw.step, device)))

    def cost(self) -> MuonCost:
        _, muon, adamw = map(median, zip(*self.times, strict=True))
        added = median((muon - adamw) / (step - muon + adamw) for step, muon, adamw in self.times)
        return MuonCost(muon, adamw, added)


def _apart(ours: _Ours, theirs: _Naive) -> tuple[float, float, float, float]:
    """The naive loss, ours less it in our precision and in float32, and the relative difference of gradients."""
    exact = theirs.loss(ours.tokens_BL)
    low = ours.loss(ours.dtype)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*learning.parameters()])])
        for loss, learning in ((low, ours.model), (exact, theirs.model))
    ]
    with torch.no_grad():
        same = ours.loss(torch.float32)
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    return exact.item(), (low - exact).item(), (same - exact).item(), difference.item()


@torch.no_grad()
def _woken(model: VAR) -> VAR:
    """A fresh model's gates and head are near 0, and nothing of what its blocks do would be seen in its loss."""
    model.head.weight.mul_(50)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.gates.fill_(1.0)
    return model


def _tokens(config: TransformerConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L) random tokens, and labels."""
    shape, numbers = (batch, config.scales.total), torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(config.codebook_size, shape, generator=numbers)
    return tokens_BL.to(device), torch.arange(batch, device=device) % config.classes


def _recipe(batch: int, optimizer: Literal["adamw", "muon"] = "adamw") -> Recipe:
    return Recipe(
        batch=batch,
        learning_rate=1e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_steps=0,
        final_rate=1.0,
        clip=2.0,
        optimizer=optimizer,
    )
