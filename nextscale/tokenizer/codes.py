"""The codes that a residual is replaced by: learned vectors, levels of scalars (FSQ), fixed unit vectors (BSQ, sphere).

Each finds the code nearest to a vector, gives the code of a number, and passes a gradient from the code to the vector.
They know nothing of the size of residuals: `quantizer` divides those by a gain for each scale.

Shapes: N vectors, V codes, C channels; leading ones are free where they are not named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import digits
from nextscale.config import TokenizerConfig
from nextscale.machine.precision import as_held

ROWS = 1 << 16  # vectors compared with all codes at a time: 1 GB of distances for 4,096 codes
MARGIN = 1e-3  # by which tanh may exceed FSQ's outermost levels, which it otherwise reaches at infinity alone


class Codebook(nn.Embedding):
    """V learned vectors.

    Arguments:
        config: V, C and what "nearest" means.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config.codebook_size, config.code_channels)
        self.distance = config.distance
        self.basis_CC: nn.Parameter | None = None
        if config.reparametrised:
            self.basis_CC = nn.Parameter(torch.empty(config.code_channels, config.code_channels))

    def learns(self, by_gradient: bool) -> None:
        """Say whether a gradient moves the codes; of reparametrised ones it moves the matrix alone (SimVQ)."""
        self.weight.requires_grad_(by_gradient and self.basis_CC is None)

    def vectors(self) -> Tensor:
        """(V, C): all codes. Reparametrised: E W, E random and fixed (SimVQ, arXiv:2411.02038)."""
        return self.weight if self.basis_CC is None else self.weight @ self.basis_CC

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> codes (..., C)."""
        codes = super().forward(tokens)
        with as_held(codes.device):
            return codes if self.basis_CC is None else codes @ self.basis_CC

    def nearest(self, z_NC: Tensor) -> Tensor:
        """(N, C) float32 -> (N,) int64, the nearest code of each vector.

        Euclidean: argmin |z - e|^2 = argmin |e|^2 - 2 z.e; cosine: argmax of the normalised product.
        """
        if len(z_NC) > ROWS:
            return torch.cat([self.nearest(part_NC) for part_NC in z_NC.split(ROWS)])
        with as_held(z_NC.device):
            e_VC = self.vectors().detach()
            if self.distance == "cosine":
                return (F.normalize(z_NC, dim=-1) @ F.normalize(e_VC, dim=-1).T).argmax(dim=-1)
            return torch.addmm(e_VC.square().sum(dim=-1), z_NC, e_VC.T, alpha=-2).argmin(dim=-1)

    def through(self, z: Tensor, tokens: Tensor) -> Tensor:
        """The codes; their gradient goes to `z` as if each vector had been rotated and stretched into its code.

        |q|/|e| R e with R the rotation of e to q, both held constant (rotation trick, arXiv:2410.06424).
        """
        codes = self(tokens).detach()
        return valued(codes, rotated(z, codes))


class ScalarLevels(nn.Module):
    """Finite scalar quantization (arXiv:2309.15505): channel i is rounded to one of n_i levels.

    h = (n - 1)(1 + margin) / 2,  o = 1/2 if n is even else 0,  bounded(z) = tanh(z + atanh(o / h)) h - o
    code = round(bounded(z)) / floor(n / 2), in [-1, 1]; its digit is round(bounded(z)) + floor(n / 2)

    Arguments:
        levels: n of each channel.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        reach = [(level - 1) * (1 + MARGIN) / 2 for level in levels]
        offset = [0.0 if level % 2 else 0.5 for level in levels]
        shift = [math.atanh(o / h) for o, h in zip(offset, reach, strict=True)]
        self._constants = (reach, offset, shift)

    def bounded(self, z: Tensor) -> Tensor:
        """(..., C) float32 -> the same between its lowest and highest level, whole numbers being levels."""
        h, o, s = map(z.new_tensor, self._constants)
        return torch.tanh(z + s) * h - o

    def nearest(self, z_NC: Tensor) -> Tensor:
        """(N, C) float32 -> (N,) int64, the number of the code that each vector is rounded to."""
        return digits.joined(self.bounded(z_NC).round().long() + self._half(z_NC), self.levels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> codes (..., C) float32."""
        half = self._half(tokens)
        return (digits.split(tokens, self.levels) - half) / half.float()

    def through(self, z: Tensor, tokens: Tensor) -> Tensor:
        """The codes; their gradient goes to `z` as if nothing had been rounded."""
        return valued(self(tokens), self.bounded(z) / self._half(z))

    def _half(self, like: Tensor) -> Tensor:
        return torch.tensor([level // 2 for level in self.levels], device=like.device)


class SphereCorners(nn.Module):
    """Binary spherical quantization (arXiv:2406.07548): u = z / |z|, code = sign(u) / sqrt(d); bit i is [z_i > 0].

    Arguments:
        bits: d, channels of a code.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def nearest(self, z_NC: Tensor) -> Tensor:
        """(N, d) float32 -> (N,) int64, the number of the corner that is nearest to each vector."""
        return digits.joined((z_NC > 0).long(), (2,) * self.bits)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> corners (..., d) float32 of length 1."""
        return (2 * digits.split(tokens, (2,) * self.bits) - 1) * self.bits**-0.5

    def through(self, z: Tensor, tokens: Tensor) -> Tensor:
        """The corners; their gradient goes to u, not multiplied by 1/sqrt(d) a second time, and from there to `z`."""
        return valued(self(tokens), F.normalize(z, dim=-1))


class SpherePairs(nn.Module):
    """The permutations of (+-1, +-1, 0 ...) / sqrt(2): 2 d (d - 1) unit vectors with two channels that are not 0.

    With d = 24 they are the 1,104 of the form (+-4, +-4, 0 ...) / sqrt(32) among the shortest vectors of the Leech
    lattice, all of which Spherical Leech Quantization (arXiv:2512.14697) takes for its codes. The number of a code is
    4 p + [z_i > 0] + 2 [z_j > 0], p being that of its channels i < j: (0, 1), (0, 2), (1, 2), (0, 3) ...

    Arguments:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def nearest(self, z_Nd: Tensor) -> Tensor:
        """(N, d) float32 -> (N,) int64, the code with the largest product: the two largest channels, with their signs.

        Lengths of vectors do not matter.
        """
        i_N, j_N = z_Nd.abs().topk(2, dim=-1).indices.sort(dim=-1).values.unbind(-1)
        up_N2 = (z_Nd.gather(-1, torch.stack([i_N, j_N], dim=-1)) > 0).long()
        return 4 * (j_N * (j_N - 1) // 2 + i_N) + up_N2[:, 0] + 2 * up_N2[:, 1]

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> codes (..., d) float32 of length 1."""
        j_P, i_P = torch.tril_indices(self.channels, self.channels, offset=-1, device=tokens.device)
        pairs = tokens.div(4, rounding_mode="floor")
        channels = torch.stack([i_P[pairs], j_P[pairs]], dim=-1)
        signs = digits.split(tokens.remainder(4), (2, 2)) * 2 - 1
        codes = torch.zeros(*tokens.shape, self.channels, device=tokens.device)
        return codes.scatter(-1, channels, signs * 0.5**0.5)

    def through(self, z: Tensor, tokens: Tensor) -> Tensor:
        """The codes; their gradient goes to z / |z|, and from there to `z`."""
        return valued(self(tokens), F.normalize(z, dim=-1))


Codes = Codebook | ScalarLevels | SphereCorners | SpherePairs


def codes_of(config: TokenizerConfig) -> Codes:
    """What a config quantizes to."""
    if config.bits:
        return SphereCorners(config.bits)
    if config.quantizer == "sphere":
        return SpherePairs(config.code_channels)
    return ScalarLevels(config.levels) if config.levels else Codebook(config)


# -- gradients ---------------------------------------------------------------------------------------------------------


def valued(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, to the bit, with the gradient of the surrogate."""
    return value + (surrogate - surrogate.detach())


# r = (e + q) / |e + q| of unit vectors:  R x = x - 2 r (r.x) + 2 q (e.x)
def rotated(z: Tensor, q: Tensor) -> Tensor:
    """z (..., C), rotated and stretched into q by a linear map that is held constant."""
    z_unit, q_unit = F.normalize(z.detach(), dim=-1), F.normalize(q, dim=-1)
    r = F.normalize(z_unit + q_unit, dim=-1)
    turned = z - 2 * r * (r * z).sum(dim=-1, keepdim=True) + 2 * q_unit * (z_unit * z).sum(dim=-1, keepdim=True)
    return turned * (q.norm(dim=-1, keepdim=True) / z.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12))
