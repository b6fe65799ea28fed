"""Is the codebook alive? Usage of each scale on held-out pictures, and plain words where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nextscale.config import TokenizerConfig

HANDFUL = 10  # a scale whose perplexity is below this says little more than a handful of codes could


@dataclass(frozen=True)
class ScaleUsage:
    """What one scale does with the codebook."""

    size: str
    """"4x6"."""
    used: int
    """Codes that occur."""
    possible: int
    """Codes that could: those in the codebook, but no more than there were tokens."""
    perplexity: float
    """exp(entropy) of the codes: how many equally frequent codes would carry as much."""

    @property
    def collapsed(self) -> bool:
        """Whether it has come down to a handful, where more was possible."""
        return self.perplexity < min(HANDFUL, self.possible / 2)

    def warning(self) -> str:
        """For people."""
        return (
            f"scale {self.size} has collapsed to a handful of codes: {self.used} of {self.possible} possible are used, "
            f"as much as {self.perplexity:.1f} equally frequent ones would say"
        )


def scale_usage(config: TokenizerConfig, validation: Mapping[str, float], pictures: int) -> list[ScaleUsage]:
    """The usage of every scale, from the figures of a validation over so many pictures."""
    return [
        ScaleUsage(
            f"{h}x{w}",
            round(validation[f"codes_used_scale_{k}"]),
            min(config.codebook_size, pictures * h * w),
            validation[f"perplexity_scale_{k}"],
        )
        for k, (h, w) in enumerate(config.scales, start=1)
    ]
