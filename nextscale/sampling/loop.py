"""One loop over scales: predict a scale, choose its tokens, paint them, pool the canvas, go on.

Two models come in, neither knows the other; tokens, canvas and cache belong to the loop. What others want to change is
a function: the guidance schedule, `process`, which may replace the logits, `edit`, which may replace what is about to
be painted, and `on`, which makes what it is painted on.

Randomness is a pure function of (seed of the image, position, code), for a head in groups of (seed, position, digit,
value): no generator has a state, so image i depends on seed i, label i and prompt i alone, whatever the batch, the
order, the device, or what else was sampled before.

Shapes: B batch, L positions of all scales, l positions of one scale, V codes, C code channels, n candidates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from nextscale import digits
from nextscale.checks import check_fields
from nextscale.errors import InputError
from nextscale.sampling.guidance import Guidance, guided_scales, weights_of
from nextscale.sampling.step_guidance import StepGuidance
from nextscale.text.prompts import Prompts
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.transformer import VAR, Condition, KeyValueCache

Edit = Callable[[int, Tensor], Tensor]
"""(scale k, codes (B, C, h_k, w_k)) -> the codes to paint instead."""
Process = Callable[[int, Tensor], Tensor]
"""(scale k, logits (B, h_k * w_k, V) float32, after guidance) -> the logits to draw from; may write to what it gets.
For a head in groups V is the sum of their sizes."""


@dataclass(frozen=True)
class Choice:
    """How a token is drawn from its logits. Raises `InputError` for values out of range."""

    top_k: int = 900
    """Only the k most likely codes; 0 for all. A head in groups is truncated group by group, here and by `top_p`."""
    top_p: float = 0.96
    """Inside them, only the likeliest that together reach this probability, at least one; 0 or 1 for all."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely code."""
    smooth: bool = False
    """Paint a Gumbel-softmax mixture of codes instead of one: smoother pictures, for show only."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.top_k < 0:
            raise InputError(f"top_k: expected 0 (all codes) or more, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p: expected 0 .. 1, got {self.top_p}")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: expected 0 or more, got {self.temperature}")
        for name, kind in (("top_k", int), ("top_p", float), ("temperature", float)):  # NumPy's are no JSON
            object.__setattr__(self, name, kind(getattr(self, name)))


@dataclass(frozen=True)
class Painted:
    """What the loop yields after each scale."""

    scale: int
    """k, 0-based."""
    tokens: Tensor
    """(B, h_k, w_k) int64, as the transformer chose them (before any edit)."""
    canvas: Tensor
    """(B, C, h_K, w_K) float32, f_hat so far; `MultiScaleVQVAE.paint` shows it."""


@dataclass(frozen=True)
class Ranking:
    """Of several maps drawn from the same logits the one that scores best is painted (as LSRS, arXiv:2512.03796)."""

    score: Callable[[Painted], Tensor]
    """B M candidates, those of a picture one after the other, their canvas as if painted -> (B M,), finite; the larger
    the better, of equal ones the first."""
    count: int
    """M, of which the first is the map that would be drawn without this."""
    scales: Collection[int]
    """Where so many are drawn."""


class Canvas(Protocol):
    """What is painted step by step, and what the transformer sees of it."""

    def paint(self, k: int, codes_BChw: Tensor) -> Tensor:
        """f_hat (B, C, h_K, w_K) once the codes of step k are on it."""
        ...

    def seen(self, k: int) -> Tensor:
        """(B, l, C), what step k begins with."""
        ...


class Pyramid:
    """A `Canvas` of scales: each adds what the coarser ones lack, and sees their sum at its own size."""

    def __init__(self, quantizer: MultiScaleQuantizer, batch: int) -> None:
        self.quantizer, self.f_hat = quantizer, quantizer.blank(batch)

    def paint(self, k: int, codes_BChw: Tensor) -> Tensor:
        self.f_hat = self.f_hat + self.quantizer.contribution(codes_BChw, k)
        return self.f_hat

    def tried(self, k: int, codes_NChw: Tensor) -> Tensor:
        """f_hat as it would be with these codes of step k on it, of N / B candidates for each picture."""
        before_NCHW = self.f_hat.repeat_interleave(len(codes_NChw) // len(self.f_hat), dim=0)
        return before_NCHW + self.quantizer.contribution(codes_NChw, k)

    def seen(self, k: int) -> Tensor:
        return self.quantizer.pool(self.f_hat, k).flatten(2).transpose(1, 2)


@torch.inference_mode()
def generate(
    transformer: VAR,
    quantizer: MultiScaleQuantizer,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    guidance: Guidance,
    choice: Choice | Sequence[Choice],
    prompts: Prompts | None = None,
    negative: Prompts | None = None,
    step_guidance: Sequence[float] = (),
    reach: int | None = None,
    process: Process | None = None,
    ranking: Ranking | None = None,
    edit: Edit | None = None,
    on: Callable[[MultiScaleQuantizer, int], Canvas] = Pyramid,
) -> Iterator[Painted]:
    """Sample images coarse to fine; yields after each scale.

    Arguments:
        labels: B class numbers; the number of classes itself means "no class".
        seeds: B integers; seed i alone decides the randomness of image i.
        guidance: the schedule of its weight (`sampling.guidance`); from where on it is 0 it costs no second row.
        choice: truncation, temperature, smoothness; of all scales, or one a scale.
        prompts: B of them; None: no text.
        negative: B prompts that guidance leads away from, of as many places; None: no text.
        step_guidance: beta of guidance by the scale before, one a scale; none: of no scale.
        reach: how many scales a token attends to, its own and those before it; None: to all so far.
        process: may replace the logits of a scale before its tokens are drawn.
        ranking: which of several maps is painted, on a `Pyramid` and without `edit`.
        edit: may replace the codes of a scale before they are painted.
        on: makes what is painted on, of the quantizer and B.

    Raises `InputError` for smooth sampling from a head in groups, logits of `process` that nothing can be drawn from,
    and prompts for a model that reads none.
    """
    scales, groups, batch = transformer.walk, transformer.config.groups, len(labels)
    choices = [choice] * len(scales) if isinstance(choice, Choice) else [*choice]
    assert len(choices) == len(scales)
    if groups and any(choice.smooth for choice in choices):
        raise InputError(f"smooth: expected a head over all codes, which it mixes, got one in {len(groups)} groups")
    device = transformer.positions.device
    weights = weights_of(guidance, len(scales))
    guided_until = guided_scales(weights)
    condition = conditioned(transformer, labels, prompts, negative, guided=guided_until > 0)
    rows = len(condition.embedding)
    cache = KeyValueCache(transformer.config, rows, dtype=transformer.compute_dtype, device=device, reach=reach)
    led_away = StepGuidance(scales, step_guidance) if any(step_guidance) else None
    keys_BL = random_keys(seeds, scales.total).to(device)
    canvas, codes_RlC = on(quantizer, batch), None
    assert ranking is None or (edit is None and isinstance(canvas, Pyramid))
    for k, part in enumerate(scales.slices()):
        logits_BlV = guided(transformer.step(k, codes_RlC, condition, cache), batch, weights[k])
        logits_BlV = led_away(k, logits_BlV) if led_away else logits_BlV
        logits_BlV = processed(process, k, logits_BlV, groups=groups) if process else logits_BlV
        progress = k / max(len(scales) - 1, 1)
        draw = partial(drawn, quantizer, scales.sizes[k], choices[k], progress=progress, groups=groups)
        if ranking is not None and k in ranking.scales:
            tokens_Bhw, codes_BChw = best_of(ranking, k, canvas, draw, logits_BlV, keys_BL[:, part])
        else:
            tokens_Bhw, codes_BChw = draw(logits_BlV, keys_BL[:, part])
        f_hat = canvas.paint(k, edit(k, codes_BChw) if edit else codes_BChw)
        if k + 1 < len(scales):
            codes_RlC = canvas.seen(k + 1)
            if k + 1 < guided_until:
                codes_RlC = codes_RlC.repeat(2, 1, 1)
            elif k + 1 == guided_until:  # no scale looks at the second rows again
                condition, cache = condition.first(batch), cache.first(batch)
        yield Painted(k, tokens_Bhw, f_hat)


def conditioned(
    transformer: VAR, labels: Sequence[int], prompts: Prompts | None, negative: Prompts | None, *, guided: bool
) -> Condition:
    """What classes and text decide; where it is `guided`, of as many rows again without class, after the others."""
    device = transformer.positions.device
    unconditional = [transformer.config.classes] * len(labels) if guided else []
    text = prompts if prompts is None or not guided else prompts.followed_by(negative or prompts.none())
    rows = torch.tensor([*labels, *unconditional], device=device)
    return transformer.condition(rows, text.to(device) if text else None)


def guided(logits_RlV: Tensor, batch: int, t: float) -> Tensor:
    """Classifier-free guidance: (1 + t) * conditional - t * unconditional; the latter in the rows after `batch`."""
    if len(logits_RlV) == batch:
        return logits_RlV
    return (1 + t) * logits_RlV[:batch] - t * logits_RlV[batch:]


def processed(process: Process, k: int, logits_BlV: Tensor, *, groups: Sequence[int] = ()) -> Tensor:
    """What `process` makes of the logits, (B, l, V) float32. It gets ordinary tensors. Waits for the device."""
    with torch.inference_mode(mode=False), torch.no_grad():
        given = process(k, logits_BlV.clone())
    if not isinstance(given, Tensor) or given.shape != logits_BlV.shape or not given.is_floating_point():
        got = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"logits_processor: expected logits {tuple(logits_BlV.shape)} of scale {k}, got {got}")
    given = given.to(logits_BlV)
    parts = given.split([*groups] or given.shape[-1], dim=-1)
    if not given.is_meta and not all(bool(part.amax(dim=-1).isfinite().all()) for part in parts):
        raise InputError(f"logits_processor: expected a finite largest logit of every token, got others at scale {k}")
    return given


def drawn(
    quantizer: MultiScaleQuantizer,
    size: tuple[int, int],
    choice: Choice,
    logits_BlV: Tensor,
    keys_Bl: Tensor,
    *,
    progress: float,
    groups: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Tokens of a map, (B, h, w), and the codes that are painted for them, (B, C, h, w). Arguments as `choose`'s."""
    tokens_Bl, mixture_BlV = choose(logits_BlV, keys_Bl, choice, progress=progress, groups=groups)
    tokens_Bhw = tokens_Bl.unflatten(1, size)
    return tokens_Bhw, quantizer.lookup(tokens_Bhw) if mixture_BlV is None else mixed(quantizer, mixture_BlV, size)


def best_of(
    ranking: Ranking,
    k: int,
    canvas: Canvas,
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    logits_BlV: Tensor,
    keys_Bl: Tensor,
) -> tuple[Tensor, Tensor]:
    """What `draw` gives, of the best of M candidates for each picture. Waits for the device.

    Raises `InputError` for scores that are not (B M,) finite numbers.
    """
    assert isinstance(canvas, Pyramid)
    keys_Nl = candidate_keys(keys_Bl, ranking.count).flatten(0, 1)
    tokens_Nhw, codes_NChw = draw(logits_BlV.repeat_interleave(ranking.count, dim=0), keys_Nl)
    candidates = tokens_Nhw, canvas.tried(k, codes_NChw)
    with torch.inference_mode(mode=False), torch.no_grad():
        scores_N = ranking.score(Painted(k, *(part.clone() for part in candidates)))
    _check_scores(scores_N, len(keys_Nl), k)
    best_B = scores_N.to(keys_Bl.device).unflatten(0, (-1, ranking.count)).float().argmax(dim=1)
    rows_B = torch.arange(len(best_B), device=best_B.device) * ranking.count + best_B
    return tokens_Nhw[rows_B], codes_NChw[rows_B]


def _check_scores(scores_N: object, count: int, k: int) -> None:
    if not isinstance(scores_N, Tensor) or scores_N.shape != (count,) or scores_N.is_complex():
        got = f"{tuple(scores_N.shape)} {scores_N.dtype}" if isinstance(scores_N, Tensor) else type(scores_N).__name__
        raise InputError(f"rerank: expected a score for each of {count} candidates of scale {k}, got {got}")
    if not scores_N.is_meta and not bool(scores_N.isfinite().all()):
        raise InputError(f"rerank: expected finite scores at scale {k}, got others")


def choose(
    logits_BlV: Tensor, keys_Bl: Tensor, choice: Choice, *, progress: float, groups: Sequence[int] = ()
) -> tuple[Tensor, Tensor | None]:
    """Draw a code for every position from the truncated softmax of its logits.

    The winner of log p_v + g_v with independent Gumbel noise g is distributed as p (Gumbel-max); the noise of a code
    does not depend on which codes are candidates, so rounding of the logits changes a draw only at a near tie.

    Arguments:
        logits_BlV: (B, l, V) float32.
        keys_Bl: (B, l) int64, from `random_keys`.
        progress: k / (K - 1), for the mixture of smooth sampling.
        groups: sizes of the digits that a token is drawn in, each by itself; V is their sum.

    Returns tokens (B, l) int64 and, for smooth sampling, the mixture (B, l, V) float32 to paint instead.
    """
    if groups:
        return choose_digits(logits_BlV, keys_Bl, choice, groups), None
    temperature, top_k = (choice.temperature, choice.top_k) if choice.temperature else (1.0, 1)
    candidates = min(top_k or logits_BlV.shape[-1], logits_BlV.shape[-1])
    values_Bln, codes_Bln = logits_BlV.topk(candidates, dim=-1)  # sorted: top-p needs no sort of its own
    values_Bln = (values_Bln - values_Bln[..., :1]) / temperature  # never above 0: no temperature makes it overflow
    if 0 < choice.top_p < 1:  # at 1 rounding of the sum would cut some of the tail
        values_Bln = nucleus(values_Bln, choice.top_p)
    noise_Bln = gumbel(keys_Bl[..., None], codes_Bln)
    tokens_Bl = codes_Bln.gather(-1, (values_Bln + noise_Bln).argmax(dim=-1, keepdim=True)).squeeze(-1)
    if not choice.smooth:
        return tokens_Bl, None
    tau = max(0.27 * (1 - 0.95 * progress), 0.005)
    mixture_Bln = ((values_Bln * (1 + progress) + noise_Bln) / tau).softmax(dim=-1)
    return tokens_Bl, torch.zeros_like(logits_BlV).scatter(-1, codes_Bln, mixture_Bln)


def choose_digits(logits_BlV: Tensor, keys_Bl: Tensor, choice: Choice, groups: Sequence[int]) -> Tensor:
    """Draw every digit of every token as `choose` draws a code: (B, l) int64. Neighbours of one size together."""
    drawn = []
    for run in digits.runs(groups):
        logits_Blgm = logits_BlV[..., run.columns].unflatten(-1, run.shape)
        drawn.append(choose(logits_Blgm, digit_keys(keys_Bl, run.digits), choice, progress=0.0)[0])
    return digits.joined(torch.cat(drawn, dim=-1), groups)


# v stays while sum_u<v p_u < top_p
def nucleus(values_Bln: Tensor, top_p: float) -> Tensor:
    """Logits, falling along n, of the likeliest codes that together reach `top_p`; -infinity for those behind them."""
    p_Bln = values_Bln.softmax(dim=-1)
    outside = p_Bln.cumsum(dim=-1) - p_Bln >= top_p
    outside[..., 0] = False
    return values_Bln.masked_fill(outside, -torch.inf)


def mixed(quantizer: MultiScaleQuantizer, mixture_BlV: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights over all codes -> the mixture of their vectors, (B, C, h, w)."""
    return (mixture_BlV @ quantizer.vectors()).transpose(1, 2).unflatten(2, size)


# -- randomness as a function of its place -----------------------------------------------------------------------------

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio as int64: the increment of SplitMix64


def random_keys(seeds: Sequence[int], total: int) -> Tensor:
    """A stream for each position of each image: (B, total) int64."""
    seeds_B1 = torch.tensor([_wrap(seed) for seed in seeds], dtype=torch.int64, device="cpu")[:, None]
    return _mix(_mix(seeds_B1 + _GOLDEN) + torch.arange(1, total + 1, device="cpu") * _GOLDEN)


def digit_keys(keys: Tensor, wanted: slice) -> Tensor:
    """A stream for each of some digits of each position: (...) int64 -> (..., g) int64."""
    numbers = torch.arange(wanted.start + 1, wanted.stop + 1, device=keys.device)
    return _mix(keys[..., None] + numbers * _GOLDEN)


def candidate_keys(keys_Bl: Tensor, count: int) -> Tensor:
    """A stream for each position of so many maps, (B, l) int64 -> (B, M, l); the first map has the streams given.

    Those of the others are made of the complement, so that none is among those of digits and codes.
    """
    numbers_M1 = torch.arange(count, device=keys_Bl.device)[:, None]
    others_BMl = _mix(~keys_Bl[:, None] + numbers_M1 * _GOLDEN)
    return torch.where(numbers_M1 == 0, keys_Bl[:, None], others_BMl)


def gumbel(keys: Tensor, codes: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, a pure function of the key of a position and the number of a code (broadcast)."""
    return -(-uniform(keys, codes).log()).log().float()


def uniform(keys: Tensor, codes: Tensor) -> Tensor:
    """Between 0 and 1, neither of them, float64; a function of the same."""
    bits = _mix(keys + (codes + 1) * _GOLDEN)
    u = (bits.bitwise_right_shift(11).bitwise_and((1 << 53) - 1).double() + 0.5) * 2.0**-53
    return u.clamp(max=1 - 2.0**-53)  # the largest is rounded to 1


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): int64 -> int64, arithmetic modulo 2^64."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return x.bitwise_right_shift(bits).bitwise_and((1 << (64 - bits)) - 1)


def _wrap(seed: int) -> int:
    """Any integer, of numpy or torch too, as int64, modulo 2^64. Raises `InputError` for what is none."""
    try:
        return (operator.index(seed) + 2**63) % 2**64 - 2**63
    except TypeError:
        raise InputError(f"seeds: expected integers, got {seed!r}") from None
