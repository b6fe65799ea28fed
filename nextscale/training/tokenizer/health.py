"""The health of the tokenizer: what each scale does, as a table, and plain words where a figure passes a threshold.

Figures come in, text goes out: nothing is measured here, nothing printed. The thresholds are the constants below; a
figure that is missing (nan) passes none of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nextscale.config import Quantizer, TokenizerConfig
from nextscale.training.monitoring import ENOUGH_STEPS, Figures, about_gradients, columns

HANDFUL = 10  # a scale whose perplexity is below this says little more than a handful of codes could
USED_SHARE = 0.5  # of the codes it could use that a scale should; as many random draws as codes would use 0.63 of them
FEW_TOKENS = 4  # up to 2x2, pictures have too little to say for that
RESIDUAL_GROWTH = 0.001  # share of the features' energy; less would not be seen in the table
DECIBELS_LOST = 0.01  # by the last scale; less is within the rounding of bfloat16
DECIBELS_PAID = 1.0  # for what a discriminator adds; about a quarter more error, and still hard to see
TOLD_BY_ALL = 0.95  # share of patches classified correctly from which hardly any patch is left to learn from
TOLD_BY_CHANCE = 0.55  # share of patches classified correctly up to which the discriminator as good as guesses
HELD_SHARE = 0.5  # of the steps with the adaptive weight at a bound: then the bound is the weight
ROUNDING = 1e-6  # of a float32 that was clamped, relative
PAGE = "docs/tokenizer.md"
COLLAPSED = {
    "codebook": "a k-means start, restarts of dead codes, or fewer channels a code",
    "fsq": "fewer levels, or a longer run",
    "bsq": "a larger objective.entropy, fewer bits, or a longer run",
    "sphere": "fewer channels, or a longer run",
}
SPARSE = COLLAPSED | {"codebook": "restarts of dead codes more often, fewer channels a code, or a smaller codebook"}


@dataclass(frozen=True)
class ScaleUsage:
    """What one scale does with the codebook, and what that does for the picture."""

    size: str
    """"4x6"."""
    used: int
    """Codes that occur."""
    possible: int
    """Codes that could: those in the codebook, but no more than there were tokens."""
    perplexity: float
    """exp(entropy) of the codes: how many equally frequent codes would carry as much."""
    residual: float
    """Share of the features' energy that is left after this scale; 1 is all of it, nan unknown."""
    psnr: float
    """Of pictures painted through this scale, in dB; nan unknown."""

    @property
    def collapsed(self) -> bool:
        """Whether it has come down to a handful, where more was possible."""
        return self.perplexity < min(HANDFUL, self.possible / 2)

    def warning(self, quantizer: Quantizer = "codebook") -> str:
        """For people, with what to try for the kind of codes."""
        return (
            f"scale {self.size} has collapsed to a handful of codes: {self.used} of {self.possible} possible are used, "
            f"with the perplexity of {self.perplexity:.1f} equally frequent ones; try {COLLAPSED[quantizer]} "
            f"(docs/tokenizer.md)"
        )


@dataclass(frozen=True)
class DigitUsage:
    """How one scale uses the digits (bits, levels) of fixed codes, which are too many to be counted one by one."""

    size: str
    """"4x6"."""
    digits: int
    """Channels of a code."""
    evenness: float
    """Entropy of a digit as a share of the largest possible, averaged over digits."""
    still: int
    """Digits that hardly ever change."""
    residual: float
    """As of `ScaleUsage`."""
    psnr: float
    """Likewise."""

    @property
    def collapsed(self) -> bool:
        """Whether most digits say nothing."""
        return self.still > self.digits / 2

    def warning(self, quantizer: Quantizer) -> str:
        """For people, with what to try for the kind of codes."""
        return (
            f"scale {self.size} has collapsed: {self.still} of {self.digits} channels hardly ever change; try "
            f"{COLLAPSED[quantizer]} (docs/tokenizer.md)"
        )


Usage = ScaleUsage | DigitUsage


def usage(config: TokenizerConfig, validation: Figures, pictures: int) -> Sequence[Usage]:
    """The usage of every scale, from the figures of a validation over so many pictures."""
    return scale_usage(config, validation, pictures) if config.countable else digit_usage(config, validation)


def scale_usage(config: TokenizerConfig, validation: Figures, pictures: int) -> list[ScaleUsage]:
    """Of codes that are counted one by one."""
    return [
        ScaleUsage(
            f"{h}x{w}",
            round(validation[f"codes_used_scale_{k}"]),
            min(config.codebook_size, pictures * h * w),
            validation[f"perplexity_scale_{k}"],
            validation.get(f"residual_scale_{k}", math.nan),
            validation.get(f"psnr_scale_{k}", math.nan),
        )
        for k, (h, w) in enumerate(config.scales, start=1)
    ]


def digit_usage(config: TokenizerConfig, validation: Figures) -> list[DigitUsage]:
    """Of codes whose digits are counted."""
    return [
        DigitUsage(
            f"{h}x{w}",
            len(config.digits),
            validation[f"evenness_scale_{k}"],
            round(validation[f"still_scale_{k}"]),
            validation.get(f"residual_scale_{k}", math.nan),
            validation.get(f"psnr_scale_{k}", math.nan),
        )
        for k, (h, w) in enumerate(config.scales, start=1)
    ]


# ---- the table -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Usage]) -> list[str]:
    """Lines of text, a column a scale; ten scales fit 80 columns."""
    return columns([_titles(rows[0]), *map(_cells, rows)])


def _titles(row: Usage) -> tuple[str, ...]:
    if isinstance(row, ScaleUsage):
        return ("scale", "codes used", "possible", "perplexity", "residual %", "PSNR dB")
    return ("scale", "evenness %", "still", "residual %", "PSNR dB")


def _cells(row: Usage) -> tuple[str, ...]:
    painted = (_short(100 * row.residual), _short(row.psnr))
    if isinstance(row, ScaleUsage):
        return (row.size, str(row.used), str(row.possible), _short(row.perplexity), *painted)
    return (row.size, _short(100 * row.evenness), str(row.still), *painted)


def capacity(config: TokenizerConfig) -> str:
    """What the tokens of a picture can tell, for any kind of codes."""
    bits, pixels = config.picture_bits, config.height * config.width
    tokens = f"{config.scales.total} tokens of {math.log2(config.codebook_size):.3g} bits"
    return f"a picture is {tokens}: {bits:,.0f} bits, {bits / pixels:.2f} a pixel"


def alignment(network: str, validation: Figures) -> str:
    """How far features have come towards those of the semantic term's network."""
    cosine = 1 - validation.get("semantic", math.nan)
    return f"projected features have a cosine of {cosine:.3f} with those of {network}"


def _short(value: float) -> str:
    """One decimal while that takes no more than four characters."""
    return "-" if math.isnan(value) else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"


# ---- the words -------------------------------------------------------------------------------------------------------


def warnings(
    config: TokenizerConfig,
    validation: Figures,
    figures: Sequence[Figures],
    pictures: int,
    *,
    clip: float = math.inf,
    adaptive_range: tuple[float, float] = (0.0, math.inf),
    history: Sequence[Figures] = (),
) -> list[str]:
    """What is not as it should be, each as one line with its figures and what to try.

    Arguments:
        validation: held-out figures, over so many `pictures`.
        figures: of the steps since the validation before. Those with an "adaptive_weight" are the steps in which the
            discriminator was heard, those with a gradient norm that is not finite were skipped.
        clip: of the gradient's norm.
        adaptive_range: between which the adaptive weight is clamped.
        history: the validations before, for the best PSNR so far.
    """
    rows = usage(config, validation, pictures)
    heard = [step for step in figures if _is_heard(step)]
    return [
        *_about_codes(config, rows),
        *_about_painting(rows),
        *about_gradients(figures, clip, page=PAGE),
        *_about_discriminator(figures),
        *_about_balance(heard, adaptive_range),
        *(_about_price(validation, history) if heard else ()),
    ]


def _about_codes(config: TokenizerConfig, rows: Sequence[Usage]) -> Iterator[str]:
    for row, tokens in zip(rows, config.scales.lengths, strict=True):
        if row.collapsed:
            yield row.warning(config.quantizer)
        elif isinstance(row, ScaleUsage) and tokens > FEW_TOKENS and row.used < USED_SHARE * row.possible:
            yield (
                f"scale {row.size} uses {row.used} of {row.possible} possible codes, less than {USED_SHARE:.0%}; try "
                f"{SPARSE[config.quantizer]} (docs/tokenizer.md)"
            )


def _about_painting(rows: Sequence[Usage]) -> Iterator[str]:
    """Of the residual before the first scale, everything is left."""
    for before, row in zip([1.0, *(row.residual for row in rows)], rows, strict=False):
        if row.residual - before > RESIDUAL_GROWTH:
            yield (
                f"scale {row.size} leads away from the features: {row.residual:.1%} of their energy is left after it, "
                f"{before:.1%} before it; try Euclidean distance, more codes, or a phi for each scale "
                f"(docs/tokenizer.md)"
            )
    if len(rows) > 1 and rows[-2].psnr - rows[-1].psnr > DECIBELS_LOST:
        yield (
            f"the last scale, {rows[-1].size}, makes pictures worse: PSNR {rows[-1].psnr:.2f} dB after it, "
            f"{rows[-2].psnr:.2f} before it; try longer training, then restarts of dead codes or less quantizer "
            f"dropout (docs/tokenizer.md)"
        )


def _about_discriminator(figures: Sequence[Figures]) -> Iterator[str]:
    """Heard, it may come close to guessing without harm: what it tells apart is what the autoencoder then mends."""
    told = [step for step in figures if "discriminator_accuracy" in step]
    heard = [step["discriminator_accuracy"] for step in told if _is_heard(step)]
    if heard and statistics.fmean(heard) > TOLD_BY_ALL:
        yield (
            f"the discriminator has won: it classifies {statistics.fmean(heard):.1%} of patches correctly, more than "
            f"{TOLD_BY_ALL:.0%}, and its gradient carries little information; try a smaller learning rate for it, more "
            "DiffAug or LeCam (docs/tokenizer.md)"
        )
    alone = [step["discriminator_accuracy"] for step in told if not _is_heard(step)]
    accuracy = statistics.fmean(alone[-ENOUGH_STEPS:]) if len(alone) >= ENOUGH_STEPS else math.nan
    if accuracy < TOLD_BY_CHANCE:
        yield (
            f"the discriminator has learned nothing in {len(alone)} steps alone: it classifies {accuracy:.1%} of "
            f"patches correctly, less than {TOLD_BY_CHANCE:.0%}; try a longer warm-up or a larger learning rate for it "
            "(docs/tokenizer.md)"
        )


def _is_heard(step: Figures) -> bool:
    """Whether the autoencoder minimised the adversarial term, too."""
    return "adaptive_weight" in step


def _about_balance(heard: Sequence[Figures], adaptive_range: tuple[float, float]) -> Iterator[str]:
    weights = [step["adaptive_weight"] for step in heard]
    low, high = adaptive_range
    sides = (
        (
            "lower",
            low,
            sum(weight <= low * (1 + ROUNDING) for weight in weights),
            "outweighs that of the reconstruction by far",
        ),
        ("upper", high, sum(weight >= high * (1 - ROUNDING) for weight in weights), "has as good as vanished"),
    )
    for side, bound, held, why in sides:
        if len(weights) >= ENOUGH_STEPS and held >= HELD_SHARE * len(weights):
            yield (
                f"the adaptive weight is at its {side} bound of {bound:g} in {held} of {len(weights)} steps: the "
                f"discriminator's gradient {why}; try a longer warm-up, more LeCam, or another range "
                f"(docs/tokenizer.md)"
            )


def _about_price(validation: Figures, history: Sequence[Figures]) -> Iterator[str]:
    """While the discriminator is heard."""
    psnr = validation.get("psnr", math.nan)
    best = max((before["psnr"] for before in history if "psnr" in before), default=math.nan)
    if best - psnr > DECIBELS_PAID:
        yield (
            f"PSNR is {psnr:.2f} dB, {best - psnr:.2f} below its best of {best:.2f}, with the adversarial term; "
            f"try a smaller adversarial weight, a longer ramp, or more L2 (docs/tokenizer.md)"
        )
