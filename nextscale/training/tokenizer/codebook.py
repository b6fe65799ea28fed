"""The care of the codebook: where codes begin, how they follow the residuals, and what becomes of dead ones.

All of it works on real residuals, the vectors that ask for a code (`quantizer.Walk.residuals`), and is told its random
numbers. Over several processes all see the same residuals and make the same codes.

Shapes: N vectors, V codes, C channels, K scales, B pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.machine import distributed
from nextscale.scales import Scales
from nextscale.tokenizer.codes import ROWS
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.training.recipes import Codebook

KMEANS_ROUNDS = 10  # of Lloyd's algorithm; the codes go on learning, so it need not converge
WALKS = 3  # rounds of walking the scales and clustering, since a scale's residuals depend on the coarser codes
VECTORS_A_CODE = 32  # at most, in clustering
CANDIDATES = 1024  # residuals of a scale that dead codes may be restarted from
SETTLED = 0.9  # share of a run after which no code is restarted any more


# -- where codes begin -------------------------------------------------------------------------------------------------


def kmeans(vectors_NC: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm: (count, C) centres; an empty one is put on the vector that is farthest from its centre."""
    centres_VC = vectors_NC[drawn(len(vectors_NC), count, generator)].clone()
    for _ in range(KMEANS_ROUNDS):
        squares_V = centres_VC.square().sum(dim=1)
        parts = [torch.addmm(squares_V, part, centres_VC.T, alpha=-2).min(dim=1) for part in vectors_NC.split(ROWS)]
        distances_N, nearest_N = (torch.cat(side) for side in zip(*parts, strict=True))
        hits_V, sums_VC = tallied(vectors_NC, nearest_N, count)
        centres_VC = torch.where(hits_V[:, None] > 0, sums_VC / hits_V.clamp_min(1)[:, None], centres_VC)
        empty = (hits_V == 0).nonzero().flatten()
        farthest = (distances_N + vectors_NC.square().sum(dim=1)).argsort(descending=True)[: len(empty)]
        centres_VC[empty[: len(farthest)]] = vectors_NC[farthest]
    return centres_VC


@torch.no_grad()
def start_from_residuals(quantizer: MultiScaleQuantizer, f_BCHW: Tensor, generator: torch.Generator) -> None:
    """Put the codes on the centres of the residuals of features, each scale with the same say."""
    count = len(quantizer.learned.weight)
    cap = max(VECTORS_A_CODE * count // len(quantizer.scales), 1)
    for _ in range(WALKS):
        residuals = [distributed.gathered(residual) for residual in quantizer(f_BCHW).residuals]
        chosen = [residual[drawn(len(residual), min(cap, len(residual)), generator)] for residual in residuals]
        centres_VC = kmeans(torch.cat(chosen), count, generator)
        # sums over many vectors may come out differently on each of several accelerators
        quantizer.learned.weight.copy_(distributed.from_first(centres_VC))


# -- how they follow ---------------------------------------------------------------------------------------------------


class RunningMeans:
    """Codes as running averages of the residuals that choose them (van den Oord et al. 2017, appendix A.1).

    n_v <- d n_v + (1 - d) hits_v,   m_v <- d m_v + (1 - d) sum of z with nearest code v,   e_v = m_v / n_v
    """

    def __init__(self, quantizer: MultiScaleQuantizer, decay: float) -> None:
        codes_VC = quantizer.learned.weight
        self.quantizer, self.decay = quantizer, decay
        self.hits_V, self.sums_VC = torch.ones_like(codes_VC[:, 0]).detach(), codes_VC.detach().clone()

    def begin(self) -> None:
        """Take the codes as they are for the averages so far."""
        self.hits_V.fill_(1.0)
        self.sums_VC.copy_(self.quantizer.learned.weight.detach())

    @torch.no_grad()
    def update(self, residuals: Sequence[Tensor], tokens_BL: Tensor, scales: Scales) -> None:
        """Fold in a batch: what each of `scales` had to say, and the codes chosen for it."""
        parts = scales.split(tokens_BL)
        tallies = [
            tallied(z_NC.detach(), part.flatten(), len(self.hits_V))
            for z_NC, part in zip(residuals, parts, strict=True)
        ]
        hits_V, sums_VC = (distributed.summed(torch.stack(tally).sum(dim=0)) for tally in zip(*tallies, strict=True))
        self.hits_V.lerp_(hits_V, 1 - self.decay)
        self.sums_VC.lerp_(sums_VC, 1 - self.decay)
        alive = self.hits_V > 1e-3
        self.quantizer.learned.weight[alive] = self.sums_VC[alive] / self.hits_V[alive, None]

    @torch.no_grad()
    def moved(self, codes: Tensor) -> None:
        """Some codes were put elsewhere: forget what they were."""
        self.hits_V[codes] = 1.0
        self.sums_VC[codes] = self.quantizer.learned.weight[codes].detach()

    def state_dict(self) -> dict[str, Tensor]:
        return {"hits": self.hits_V, "sums": self.sums_VC}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.hits_V.copy_(state["hits"])
        self.sums_VC.copy_(state["sums"])


# -- what becomes of dead ones -----------------------------------------------------------------------------------------


def is_restart(recipe: Codebook, step: int, total: float | None) -> bool:
    """Whether dead codes are looked for after 0-based `step`: regularly, until the codes have to settle."""
    due = recipe.restart_every > 0 and (step + 1) % recipe.restart_every == 0
    return due and total is not None and step < SETTLED * total


@torch.no_grad()
def restart_dead(
    quantizer: MultiScaleQuantizer, residuals: Sequence[Tensor], *, dead_below: float, generator: torch.Generator
) -> Tensor:
    """Put dead codes on residuals of the scales that use fewest of the codes; the codes that moved, (n,) int64.

    A code is dead when its hits, all scales together, are below `dead_below` times those of an even use.
    """
    hits_KV = quantizer.hits_KV
    even = float(hits_KV.sum() / hits_KV.shape[1])
    dead = (hits_KV.sum(dim=0) < dead_below * even).nonzero().flatten()
    everywhere = [distributed.gathered(z) for z in residuals]
    candidates = [z[drawn(len(z), CANDIDATES, generator)] for z in everywhere]
    scales = torch.multinomial(shortfall(hits_KV).cpu(), max(len(dead), 1), replacement=True, generator=generator)
    for code, scale in zip(dead.tolist(), scales.tolist(), strict=False):
        z_NC = candidates[scale]
        quantizer.learned.weight[code] = z_NC[drawn(len(z_NC), 1, generator)[0]]
        hits_KV[scale, code] = even  # so that a fresh code has a few restarts' time to find its use
    return dead


def shortfall(hits_KV: Tensor) -> Tensor:
    """(K,) float32: how far each scale is from an even use of the codes it could use, from 1e-3 (evenly) to 1."""
    possible_K = hits_KV.sum(dim=1).clamp(1, hits_KV.shape[1])
    p_KV = hits_KV / hits_KV.sum(dim=1, keepdim=True).clamp_min(1e-9)
    perplexity_K = torch.special.entr(p_KV).sum(dim=1).exp()
    return (1 - perplexity_K / possible_K).clamp(1e-3, 1)


# -- fewer scales ------------------------------------------------------------------------------------------------------


def dropped(recipe: Codebook, scales: Scales, batch: int, generator: torch.Generator) -> Tensor | None:
    """(batch,) int64: with how many scales each picture is painted (quantizer dropout); None when with all."""
    if not recipe.dropout:
        return None
    count, least = len(scales), min(recipe.dropout_from, len(scales))
    through_B = torch.randint(least, count + 1, (batch,), generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < recipe.dropout, through_B, count)


def chosen_scales(recipe: Codebook, scales: Scales, generator: torch.Generator) -> Scales:
    """The scales of a step: all, or, as often as the recipe says, the first, the last and some in between."""
    if float(torch.rand((), generator=generator)) >= recipe.random_scales:
        return scales
    kept = torch.rand(len(scales), generator=generator) < 0.5
    kept[0] = kept[-1] = True
    return Scales([size for size, keep in zip(scales.sizes, kept.tolist(), strict=True) if keep])


# -- small things ------------------------------------------------------------------------------------------------------


def drawn(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """(wanted,) int64 in [0, count): without repeats where there are enough."""
    if wanted <= count:
        return torch.randperm(count, generator=generator)[:wanted]
    return torch.randint(count, (wanted,), generator=generator)


def tallied(vectors_NC: Tensor, codes_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How often each of `count` codes occurs, (V,), and the sum of its vectors, (V, C)."""
    hits_V = torch.bincount(codes_N, minlength=count).to(vectors_NC.dtype)
    sums_VC = vectors_NC.new_zeros(count, vectors_NC.shape[1]).index_add_(0, codes_N, vectors_NC)
    return hits_V, sums_VC
