"""The health of the transformer: how well each scale's tokens are predicted, beside frequencies and the scaling laws.

Figures come in, text goes out; only the frequencies of codes are counted here. The thresholds are the
constants below. Shapes: B images, L tokens, K scales, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nextscale import digits
from nextscale.config import TransformerConfig
from nextscale.machine import distributed
from nextscale.scales import Scales
from nextscale.training.monitoring import Figures, about_gradients, columns

RISEN = 0.01  # of the lowest held-out cross-entropy: more than that above it is overfitting
EARLY = 4  # checks before which a scale need not predict better than frequencies do
PAGE = "docs/transformer.md"

# The release's: what the scaling laws were fitted to.
RELEASE_CODES, RELEASE_TOKENS, RELEASE_CLASSES = 4096, 680, 1000


class Frequencies:
    """How often each code occurred at each scale in the tokens trained on so far, by all processes.

    Arguments:
        device: where tokens are counted; nothing waits for it.
        groups: sizes of the digits that tokens are predicted in, whose values are counted instead; V is their sum.
    """

    def __init__(self, scales: Scales, codes: int, device: torch.device, *, groups: Sequence[int] = ()) -> None:
        self.scales, self.groups = scales, tuple(groups) or (codes,)
        self.counts_KV = torch.zeros(len(scales), sum(self.groups), dtype=torch.int64, device=device)
        self._own_KV = torch.zeros_like(self.counts_KV)  # of this process, since they were last gathered
        self._first_L1 = scales.level_ids().to(device)[:, None] * sum(self.groups)

    @property
    def images(self) -> int:
        """How many have been counted."""
        return int(self._seen()[0].sum()) // (self.scales.lengths[0] * len(self.groups))

    def add(self, tokens_BL: Tensor) -> None:
        """Count the tokens of a batch, on the device."""
        places = self._places(tokens_BL).flatten()
        self._own_KV.view(-1).index_add_(0, places, torch.ones_like(places))

    def gather(self) -> None:
        """Bring together what the processes have counted; all must call it."""
        self.counts_KV += distributed.summed(self._own_KV)
        self._own_KV.zero_()

    def surprise(self) -> Tensor:
        """-ln((count + 1) / (sum + V)), (K, V) float32 in nats: the loss of a guess by frequency alone."""
        counts_KV = self._seen().float() + 1
        shares = [part / part.sum(dim=1, keepdim=True) for part in counts_KV.split([*self.groups], dim=1)]
        return -torch.cat(shares, dim=1).log()

    def guesses(self, surprise_KV: Tensor, tokens_BL: Tensor) -> Tensor:
        """What `surprise` says of tokens, (B, L) float32: the sum over their digits."""
        return surprise_KV.flatten()[self._places(tokens_BL)].sum(dim=-1)

    def _places(self, tokens_BL: Tensor) -> Tensor:
        """(B, L, G) int64: where each digit is counted, among all counts."""
        return self._first_L1 + digits.columns(tokens_BL, self.groups)

    def _seen(self) -> Tensor:
        return self.counts_KV + self._own_KV

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self._seen()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.counts_KV.copy_(state["counts"])
        self._own_KV.zero_()


# ---- the table -------------------------------------------------------------------------------------------------------


def table(scales: Scales, validation: Figures) -> list[str]:
    """Lines of text, a column a scale and one for all tokens; ten scales fit 80 columns."""
    names = [(f"{h}x{w}", f"_scale_{k}") for k, (h, w) in enumerate(scales, start=1)] + [("all", "")]
    rows = [("scale", "nats", "unigram", "acc. %")]
    for size, suffix in names:
        nats, guess = validation[f"cross_entropy{suffix}"], validation[f"unigram{suffix}"]
        rows.append((size, f"{nats:.2f}", f"{guess:.2f}", f"{100 * validation[f'accuracy{suffix}']:.1f}"))
    return columns(rows)


# ---- the scaling laws ------------------------------------------------------------------------------------------------


def is_release_like(config: TransformerConfig) -> bool:
    """Whether the published laws are about such a model: the release's codes, scales and number of classes."""
    shape = (config.codebook_size, config.scales.total, config.classes)
    return shape == (RELEASE_CODES, RELEASE_TOKENS, RELEASE_CLASSES)


def loss_of_size(parameters: int) -> float:
    """5 + (2.5 N)^-0.20, N in billions: nats a token, averaged over all, at the end of a full training (paper, 4.2)."""
    return 5 + (2.5 * parameters / 1e9) ** -0.20


def accuracy_of_size(parameters: int) -> float:
    """1 - (650 N)^-0.010, N in billions: share of tokens that are predicted right, likewise."""
    return 1 - (650 * parameters / 1e9) ** -0.010


def loss_of_compute(operations: float) -> float:
    """5 + (1.5e-5 C)^-0.16, C in PFLOP: what the size that suits so much compute best reaches with it."""
    return 5 + (1.5e-5 * operations / 1e15) ** -0.16


def expectation(config: TransformerConfig, parameters: int, images: int) -> str:
    """What a run of this size should read by now, on pictures like ImageNet's, after so many images; at most ln V.

    Compute is counted as usual: 6 operations a parameter and token.
    """
    end, right = loss_of_size(parameters), accuracy_of_size(parameters)
    compute = 6.0 * parameters * config.scales.total * max(images, 1)
    now = min(max(loss_of_compute(compute), end), math.log(config.codebook_size))
    return (
        f"scaling law: d{config.depth} ({parameters / 1e6:.0f} M) should reach about {now:.2f} nats by now at "
        f"best, and {end:.2f} with {right:.1%} accuracy at the end of a full training"
    )


# ---- the words -------------------------------------------------------------------------------------------------------


def warnings(
    scales: Scales, validation: Figures, figures: Sequence[Figures], history: Sequence[Figures], *, clip: float
) -> list[str]:
    """What is not as it should be, each as one line with its figures and what to try.

    Arguments:
        validation: held-out figures.
        figures: of the steps since the validation before; "scales_learned" in them tells how many scales are.
        history: the validations before.
        clip: of the gradient's norm.
    """
    return [
        *_about_overfitting(validation, history),
        *(_about_guesses(scales, validation, figures) if len(history) >= EARLY else ()),
        *about_gradients(figures, clip, page=PAGE),
    ]


def _about_overfitting(validation: Figures, history: Sequence[Figures]) -> Iterator[str]:
    now = validation["cross_entropy"]
    lowest, step = min(
        ((before["cross_entropy"], before["step"]) for before in history if "cross_entropy" in before),
        default=(now, 0),
    )
    if now > (1 + RISEN) * lowest:
        yield (
            f"held-out cross-entropy is {now:.3f}, and was {lowest:.3f} at step {step:.0f}, which best/ keeps: the "
            f"model overfits the training pictures; try fewer steps, flip or more views, a smaller --depth, "
            f"or more pictures ({PAGE})"
        )


def _about_guesses(scales: Scales, validation: Figures, figures: Sequence[Figures]) -> Iterator[str]:
    learned = min((step["scales_learned"] for step in figures if "scales_learned" in step), default=len(scales))
    for k, (h, w) in enumerate([*scales][: int(learned)], start=1):
        nats, guess = validation[f"cross_entropy_scale_{k}"], validation[f"unigram_scale_{k}"]
        if nats > guess:
            yield (
                f"scale {h}x{w} is predicted no better than by the frequency of its codes: {nats:.2f} nats against "
                f"{guess:.2f}; try a longer run, or a larger weight of this scale ({PAGE})"
            )
