"""How good a tokenizer is: pictures through its tokens and back, judged as they would be saved, in 8 bits.

One walk over a split gathers all figures: distances of each picture from its reconstruction, the distance of the two
sets, what each scale does with its codes and what it leaves undone. Files, tables and progress bars are the caller's.

Shapes: B pictures of a batch, N of the split, K scales, V codes, L tokens, H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from nextscale import checkpoint, images
from nextscale.config import to_json
from nextscale.data import Pictures, Progress
from nextscale.data.pictures import fingerprint
from nextscale.errors import InputError
from nextscale.evaluation.statistics import RunningGaussian, frechet_distance
from nextscale.features import FeatureNetwork, PerceptualDistance
from nextscale.tokenizer import MultiScaleVQVAE

ENOUGH = 50_000  # pictures, the number that published Fréchet distances are made from
WINDOW = 11  # pixels a side of SSIM's window, a Gaussian of deviation 1.5


class Each(NamedTuple):
    """The figures of every picture, in the split's order: (N,) float64."""

    psnr: Tensor
    """dB."""
    ssim: Tensor
    perceptual: Tensor


@dataclass(frozen=True, kw_only=True)
class ScaleFigures:
    """What one scale does."""

    size: str
    """"4x6"."""
    tokens: int
    """Of one picture."""
    used: int
    """Codes that occur."""
    possible: int
    """Codes that could: those in the codebook, but no more than there were tokens."""
    perplexity: float
    """exp(entropy) of the codes: how many equally frequent codes would carry as much."""
    residual: float
    """sum |f - f_hat_k|^2 / sum |f|^2: the share of the features' energy that is left for finer scales."""
    psnr: float
    """Mean over pictures, in dB, when painted with the scales up to this one."""


@dataclass(frozen=True, kw_only=True)
class NetworkUsed:
    """Through which eyes features and perceptual distance were seen."""

    name: str
    fingerprint: str
    """Of its weights."""
    side: int
    """Pixels a side that pictures are resized to for its features."""
    perceptual_side: int | None
    """Pixels that the short side of smaller pictures is enlarged to for its inner maps; None: it is not."""
    dimensions: int
    """D, its features."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionFigures:
    """All figures of a tokenizer on a split, and what is needed to get them again."""

    pictures: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    psnr: float
    """Mean over pictures of 10 log10(peak^2 / MSE), in dB."""
    ssim: float
    """Mean structural similarity: 11x11 Gaussian window of deviation 1.5, pixels in [0, 1], the colours averaged."""
    perceptual_distance: float
    """Mean distance in the feature network's inner maps."""
    frechet_distance: float
    """Squared Fréchet distance of the features of the pictures and of their reconstructions, see `frechet_name`."""
    bits_per_pixel: float
    """L log2 V / (H W): what the tokens take as they are."""
    entropy_bits_per_pixel: float
    """What they would take coded by how often each code occurs at its scale; too low when pictures are few."""
    scales: tuple[ScaleFigures, ...]
    tokenizer_fingerprint: str
    """Of architecture and weights."""
    data_fingerprint: str
    """Of the split."""
    network: NetworkUsed
    each: Each = field(repr=False, compare=False)
    """The figures of every picture."""

    @property
    def frechet_name(self) -> str:
        """What the Fréchet distance is called wherever it stands: never FID, which is Inception's."""
        return f"FD-{self.network.name}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to keep in mind when the figures are compared, in plain words."""
        found = []
        if self.pictures < ENOUGH:
            found.append(
                f"{self.frechet_name} is made from {self.pictures:,} pictures, fewer than {ENOUGH:,}: "
                "it compares only with figures from as many"
            )
        if self.pictures <= self.network.dimensions:
            found.append(
                f"{self.pictures:,} pictures do not fill the {self.network.dimensions:,} dimensions of the features: "
                f"their covariance is singular, and {self.frechet_name} a rough figure"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Everything but the figures of single pictures, as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "each"}
        return values | {
            "frechet_name": self.frechet_name,
            "scales": [dataclasses.asdict(scale) for scale in self.scales],
            "network": dataclasses.asdict(self.network),
            "warnings": list(self.warnings),
        }


def evaluate(
    tokenizer: MultiScaleVQVAE,
    pictures: Pictures,
    network: FeatureNetwork,
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> ReconstructionFigures:
    """Judge a tokenizer on a split, seen through a feature network.

    Arguments:
        tokenizer: on any device.
        pictures: of the tokenizer's size; reconstructions are rounded to 8 bits before they are judged.
        network: on the same device.
        batch: pictures at a time; figures do not depend on it.
        progress: called with (done, total) after each batch.

    Raises `InputError` for a split without pictures, or pictures of another size or too small for SSIM's window.
    """
    if not len(pictures):
        raise InputError("pictures: expected at least one, got none")
    if batch < 1:
        raise InputError(f"batch: expected at least 1, got {batch}")
    tally = _Tally(tokenizer, network)
    with torch.no_grad():
        for start in range(0, len(pictures), batch):
            end = min(start + batch, len(pictures))
            tally.add(pictures.batch(range(start, end))[0])
            if progress is not None:
                progress(end, len(pictures))
    return tally.figures(pictures.fingerprint)


# SSIM = (2 m_x m_y + c_1) (2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1) (s_x^2 + s_y^2 + c_2)),  c_1 = 0.01^2, c_2 = 0.03^2
def ssim(painted_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
    """Structural similarity of each pair in [-1, 1], (B,) float64: the mean over pixels, edges mirrored, and colours.

    Raises `InputError` for pictures that are smaller than half the window.
    """
    height, width = images_B3HW.shape[2:]
    if min(height, width) <= WINDOW // 2:
        least = WINDOW // 2 + 1
        raise InputError(f"expected pictures of at least {least}x{least} pixels for SSIM, got {height}x{width}")
    # In float64: s^2 is a difference of squares, and in float32 its rounding reaches a flat picture's third digit.
    similarity_B = structural_similarity_index_measure(
        images.to_unit(painted_B3HW.double()),
        images.to_unit(images_B3HW.double()),
        sigma=1.5,
        kernel_size=WINDOW,
        data_range=1.0,
        reduction=None,
    )
    assert isinstance(similarity_B, Tensor)
    return similarity_B


# p = counts / sum,  H = -sum p log2 p
def entropy_bits(counts_KV: Tensor) -> Tensor:
    """Entropy of each row of counts, (K,) float64 in bits."""
    p_KV = counts_KV.double() / counts_KV.sum(dim=1, keepdim=True)
    return torch.special.entr(p_KV).sum(dim=1) / math.log(2)


class _Tally:
    """Sums over the pictures so far; only `each` grows with their number, by three numbers a picture."""

    def __init__(self, tokenizer: MultiScaleVQVAE, network: FeatureNetwork) -> None:
        scales, codes = len(tokenizer.config.scales), tokenizer.config.codebook_size
        self.tokenizer, self.network, self.perceptual = tokenizer, network, PerceptualDistance(network)
        self.originals, self.painted = RunningGaussian(network.dimensions), RunningGaussian(network.dimensions)
        self.each: list[Each] = []
        self.counts_KV = torch.zeros(scales, codes, dtype=torch.int64)
        self.decibels_K = torch.zeros(scales, dtype=torch.float64)
        self.residual_K = torch.zeros(scales, dtype=torch.float64)
        self.energy = 0.0

    def add(self, originals_B3HW: Tensor) -> None:
        """A batch of pictures, through the tokenizer and back."""
        originals_B3HW = originals_B3HW.to(self.tokenizer.quantizer.codebook.weight.device)
        for k, painted_B3HW in enumerate(self._stages(originals_B3HW)):
            decibels_B = images.psnr(painted_B3HW, originals_B3HW).double().cpu()
            self.decibels_K[k] += decibels_B.sum()
        distance_B = self.perceptual(painted_B3HW, originals_B3HW).double().cpu()
        self.each.append(Each(decibels_B, ssim(painted_B3HW, originals_B3HW).cpu(), distance_B))
        self.originals.update(self.network(originals_B3HW))
        self.painted.update(self.network(painted_B3HW))

    def _stages(self, originals_B3HW: Tensor) -> Iterator[Tensor]:
        """What is painted after each scale, rounded to 8 bits; codes and residuals are counted on the way."""
        f_BCHW = self.tokenizer.features(originals_B3HW)
        tokens_BL = self.tokenizer.quantizer.encode(f_BCHW)
        self.energy += float(f_BCHW.double().square().sum())
        parts = self.tokenizer.config.scales.split(tokens_BL)
        for k, (part, canvas) in enumerate(zip(parts, self.tokenizer.quantizer.canvases(tokens_BL), strict=True)):
            self.counts_KV[k] += torch.bincount(part.flatten(), minlength=self.counts_KV.shape[1]).cpu()
            self.residual_K[k] += (f_BCHW - canvas).double().square().sum().cpu()
            yield images.from_uint8(images.to_uint8(self.tokenizer.paint(canvas)))

    def figures(self, data_fingerprint: str) -> ReconstructionFigures:
        """Of all pictures so far."""
        each = Each(*map(torch.cat, zip(*self.each, strict=True)))
        config, scales = self.tokenizer.config, self.scales(len(each.psnr))
        pixels = config.height * config.width
        return ReconstructionFigures(
            pictures=len(each.psnr),
            height=config.height,
            width=config.width,
            psnr=float(each.psnr.mean()),
            ssim=float(each.ssim.mean()),
            perceptual_distance=float(each.perceptual.mean()),
            frechet_distance=frechet_distance(self.originals.gaussian(), self.painted.gaussian()),
            bits_per_pixel=config.scales.total * math.log2(config.codebook_size) / pixels,
            entropy_bits_per_pixel=sum(scale.tokens * math.log2(scale.perplexity) for scale in scales) / pixels,
            scales=scales,
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            data_fingerprint=data_fingerprint,
            network=self.network_used(),
            each=each,
        )

    def scales(self, pictures: int) -> tuple[ScaleFigures, ...]:
        """The figures of each scale."""
        entropy_K = entropy_bits(self.counts_KV)
        return tuple(
            ScaleFigures(
                size=f"{h}x{w}",
                tokens=h * w,
                used=int(self.counts_KV[k].count_nonzero()),
                possible=min(self.counts_KV.shape[1], pictures * h * w),
                perplexity=float(entropy_K[k].exp2()),
                residual=float(self.residual_K[k]) / self.energy if self.energy else 0.0,
                psnr=float(self.decibels_K[k]) / pictures,
            )
            for k, (h, w) in enumerate(self.tokenizer.config.scales)
        )

    def network_used(self) -> NetworkUsed:
        """What is to be known about the feature network."""
        return NetworkUsed(
            name=self.network.name,
            fingerprint=self.network.fingerprint,
            side=self.network.side,
            perceptual_side=self.perceptual.side,
            dimensions=self.network.dimensions,
        )


def tokenizer_fingerprint(tokenizer: MultiScaleVQVAE) -> str:
    """16 hex digits that change with the architecture and with any weight."""
    return fingerprint([to_json(tokenizer.config), checkpoint.fingerprint(tokenizer.state_dict())])
