"""How good a tokenizer is: pictures through its tokens and back, judged as they would be saved, in 8 bits.

One walk over a split gathers all figures: distances of each picture from its reconstruction, the distances of the two
sets, what each scale does with its codes and what it leaves undone. Files, tables and progress bars are the caller's.

Shapes: B pictures of a batch, N of the split, K scales, V codes, L tokens, H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from nextscale import digits, features, images
from nextscale.config import to_json
from nextscale.data import Pictures, Progress
from nextscale.data.pictures import fingerprint
from nextscale.errors import InputError
from nextscale.evaluation.card import PerceptualUsed, ReconstructionCard, ReferenceUsed, TokenizerUsed
from nextscale.evaluation.gathering import Gathered, Gathering, eight_bits, shares
from nextscale.evaluation.intervals import interval
from nextscale.evaluation.judging import KEPT, Figure, compared, network_used, versions
from nextscale.evaluation.reference import ReferenceFeatures
from nextscale.features import FeatureNetwork, PerceptualDistance
from nextscale.files import checkpoint
from nextscale.machine import distributed
from nextscale.tokenizer import MultiScaleVQVAE

WINDOW = 11  # pixels a side of SSIM's window, a Gaussian of deviation 1.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the card says of where things come from."""

    tokenizer: str = "tokenizer"
    """As it was named."""
    data: str = "pictures"
    """Likewise."""
    split: Literal["validation", "train"] = "validation"
    left_out: int = 0
    """Pictures of the data that cannot be read."""


class Each(NamedTuple):
    """The figures of every picture, in the split's order: (N,) float64."""

    psnr: Tensor
    """dB."""
    ssim: Tensor
    perceptual_distance: Tensor


@dataclass(frozen=True, kw_only=True)
class ScaleFigures:
    """What one scale does."""

    size: str
    """"4x6"."""
    tokens: int
    """Of one picture."""
    used: int
    """Codes that occur; where there are more than `config.COUNTABLE`, values of their digits that do."""
    possible: int
    """Codes that could: those in the codebook, but no more than there were tokens."""
    perplexity: float
    """exp(entropy) of the codes: how many equally frequent codes would carry as much; where codes are too many to be
    counted, an upper bound, as if their digits were independent."""
    residual: float
    """sum |f - f_hat_k|^2 / sum |f|^2: the share of the features' energy that is left for finer scales."""
    psnr: float
    """Mean over pictures, in dB, when painted with the scales up to this one."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionFigures:
    """All figures of a tokenizer on a split, and the card that says how they were made."""

    card: ReconstructionCard
    figures: dict[str, Figure]
    """By what they are.

    "psnr": mean over pictures of 10 log10(peak^2 / MSE), in dB. "ssim": mean structural similarity, 11x11 Gaussian
    window of deviation 1.5, pixels in [0, 1], the colours averaged. "perceptual_distance": mean distance in a network's
    inner maps. "bits_per_pixel": L log2 V / (H W), what the tokens take as they are. "entropy_bits_per_pixel": what
    they would take coded by how often each code occurs at its scale; too low when pictures are few. The others are
    those of `judging.compared`, of the reconstructions beside the pictures.
    """
    scales: tuple[ScaleFigures, ...]
    each: Each = field(repr=False, compare=False)
    """The figures of every picture."""

    def value(self, key: str) -> float:
        """Of the figure `key`."""
        return self.figures[key].value

    def to_json(self) -> dict[str, Any]:
        """Everything but the figures of single pictures, as plain JSON values: values by key, then how they are told.

        `frechet_name`, sizes and fingerprints stand beside the card that repeats them, for who looks for one of them.
        """
        card = self.card
        return {
            **{key: figure.value for key, figure in self.figures.items()},
            "frechet_name": self.figures["frechet_distance"].name,
            "pictures": card.pictures,
            "height": card.size[0],
            "width": card.size[1],
            "tokenizer_fingerprint": card.tokenizer.fingerprint,
            "data_fingerprint": card.reference.fingerprint,
            "figures": {key: dataclasses.asdict(figure) for key, figure in self.figures.items()},
            "scales": [dataclasses.asdict(scale) for scale in self.scales],
            "warnings": card.warnings(),
            "card": card.to_json(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """What was seen of a split and of its reconstructions, by all processes together."""

    originals: Gathered
    painted: Gathered
    each: Each
    scales: tuple[ScaleFigures, ...]


def evaluate(
    tokenizer: MultiScaleVQVAE,
    pictures: Pictures,
    network: FeatureNetwork,
    *,
    perceptual: PerceptualDistance | None = None,
    source: Source | None = None,
    batch: int = 32,
    keep: int = KEPT,
    progress: Progress | None = None,
) -> ReconstructionFigures:
    """Judge a tokenizer on a split, seen through a feature network: `look`, then `judge`.

    Where several processes share the pictures, each of them judges and finds the same.

    Arguments:
        tokenizer: on any device.
        pictures: of the tokenizer's size; reconstructions are rounded to 8 bits before they are judged.
        network: on the same device.
        perceptual: what the perceptual distance is measured with, likewise; None takes `perceptual_of(network)`.
        source: names, for the card.
        batch: pictures at a time; figures do not depend on it.
        keep: how many pictures' features are kept at most, for all figures of the two sets but Fréchet distances.
        progress: called with (done, total) after each batch of this process's.

    Raises `InputError` for a split without pictures, or pictures of another size or too small for SSIM's window, and
    where the tokenizer's features or pictures are not finite.
    """
    perceptual = perceptual or perceptual_of(network)
    looked = look(tokenizer, pictures, network, perceptual, batch=batch, keep=keep, progress=progress)
    card = card_of(tokenizer, pictures, network, perceptual, source or Source(), keep=keep)
    return judge(looked, network, card)


def look(
    tokenizer: MultiScaleVQVAE,
    pictures: Pictures,
    network: FeatureNetwork,
    perceptual: PerceptualDistance,
    *,
    batch: int = 32,
    keep: int = KEPT,
    progress: Progress | None = None,
) -> Looked:
    """This process's batches through the tokenizer and back; what all saw, on all, every one of which must call this.

    Arguments and errors are those of `evaluate`.
    """
    if not len(pictures):
        raise InputError("pictures: expected at least one, got none")
    looking = _Looking(tokenizer, network, perceptual, total=len(pictures), keep=keep)
    with torch.no_grad():
        for indices in shares(len(pictures), batch):
            looking.update(indices, pictures.batch(indices)[0])
            if progress is not None:
                progress(indices.stop, len(pictures))
    return looking.looked()


def judge(looked: Looked, network: FeatureNetwork, card: ReconstructionCard) -> ReconstructionFigures:
    """All figures, from what was seen."""
    originals = looked.originals
    reference = ReferenceFeatures(
        name=card.reference.name,
        fingerprint=card.reference.fingerprint,
        gaussian=originals.gaussian,
        spatial=originals.spatial,
        features=originals.features,
        spatial_features=originals.spatial_features,
        labels=None,
        count=originals.count,
        size=originals.size,
    )
    of_pictures = {"psnr": "PSNR (dB)", "ssim": "SSIM", "perceptual_distance": f"perceptual-{card.perceptual.name}"}
    means = {key: _mean(name, getattr(looked.each, key)) for key, name in of_pictures.items()}
    sets = compared(looked.painted, reference, network, paired=True)
    return ReconstructionFigures(
        card=card, figures=means | sets | _bits(card, looked.scales), scales=looked.scales, each=looked.each
    )


def card_of(
    tokenizer: MultiScaleVQVAE,
    pictures: Pictures,
    network: FeatureNetwork,
    perceptual: PerceptualDistance,
    source: Source,
    *,
    keep: int = KEPT,
) -> ReconstructionCard:
    """What is to be known about an evaluation."""
    config, counts = tokenizer.config, pictures.labels.bincount()
    return ReconstructionCard(
        tokenizer=TokenizerUsed(
            name=source.tokenizer,
            fingerprint=tokenizer_fingerprint(tokenizer),
            height=config.height,
            width=config.width,
            tokens=config.scales.total,
            codes=config.codebook_size,
            precision="fp32",
            device=tokenizer.quantizer.device.type,
        ),
        split=source.split,
        left_out=source.left_out,
        perceptual=PerceptualUsed(
            name=perceptual.network.name,
            fingerprint=perceptual.fingerprint,
            learned=perceptual.learned,
            side=perceptual.side,
        ),
        kept=keep,
        reference=ReferenceUsed(
            name=f"{source.data}, {source.split} split",
            fingerprint=pictures.fingerprint,
            pictures=len(pictures),
            height=config.height,
            width=config.width,
            fewest=int(counts.min()),
            most=int(counts.max()),
        ),
        network=network_used(network),
        versions=versions(),
    )


def _mean(name: str, values_N: Tensor) -> Figure:
    low, high = interval(values_N, generator=torch.Generator().manual_seed(0))
    return Figure(name=name, value=float(values_N.mean()), low=low, high=high)


def _bits(card: ReconstructionCard, scales: tuple[ScaleFigures, ...]) -> dict[str, Figure]:
    pixels = card.tokenizer.height * card.tokenizer.width
    plain = card.tokenizer.tokens * math.log2(card.tokenizer.codes) / pixels
    coded = sum(scale.tokens * math.log2(scale.perplexity) for scale in scales) / pixels
    return {
        "bits_per_pixel": Figure(name="bits per pixel", value=plain),
        "entropy_bits_per_pixel": Figure(name="bits, entropy-coded", value=coded),
    }


def perceptual_of(network: FeatureNetwork) -> PerceptualDistance:
    """Measured in the inner maps of `network`, or of the packaged one where it has none."""
    return PerceptualDistance(network if network.channels else features.load(device=network.mean_311.device))


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


class _Looking:
    """Sums over this process's pictures so far; beside features, three numbers a picture grow with their number."""

    def __init__(
        self,
        tokenizer: MultiScaleVQVAE,
        network: FeatureNetwork,
        perceptual: PerceptualDistance,
        *,
        total: int,
        keep: int,
    ) -> None:
        scales, values = len(tokenizer.config.scales), sum(tokenizer.config.counted)
        self.tokenizer, self.perceptual = tokenizer, perceptual
        self.originals, self.painted = (Gathering(network, total=total, keep=keep, keep_spatial=True) for _ in range(2))
        self.each_3N = torch.zeros(3, total, dtype=torch.float64)
        self.counts_KV = torch.zeros(scales, values, dtype=torch.int64)
        self.decibels_K = torch.zeros(scales, dtype=torch.float64)
        self.residual_K = torch.zeros(scales, dtype=torch.float64)
        self.energy = torch.zeros((), dtype=torch.float64)

    def update(self, indices: range, originals_B3HW: Tensor) -> None:
        """A batch of pictures, which stand at `indices` among all, through the tokenizer and back."""
        originals_B3HW = originals_B3HW.to(self.tokenizer.quantizer.device)
        for k, painted_B3HW in enumerate(self._stages(originals_B3HW)):
            decibels_B = images.psnr(painted_B3HW, originals_B3HW).double().cpu()
            self.decibels_K[k] += decibels_B.sum()
        distance_B = self.perceptual(painted_B3HW, originals_B3HW).double().cpu()
        each = Each(decibels_B, ssim(painted_B3HW, originals_B3HW).cpu(), distance_B)
        self.each_3N[:, indices.start : indices.stop] = torch.stack(each)
        self.originals.update(indices, originals_B3HW)
        self.painted.update(indices, painted_B3HW)

    def _stages(self, originals_B3HW: Tensor) -> Iterator[Tensor]:
        """What is painted after each scale, rounded to 8 bits; codes and residuals are counted on the way."""
        f_BCHW = self.tokenizer.features(originals_B3HW)
        tokens_BL = self.tokenizer.quantizer.encode(f_BCHW)
        if not f_BCHW.isfinite().all():  # tokens of NaN are tokens all the same
            raise InputError("expected finite features from the tokenizer, got NaN or infinity")
        self.energy += f_BCHW.double().square().sum().cpu()
        parts = self.tokenizer.config.scales.split(tokens_BL)
        for k, (part, canvas) in enumerate(zip(parts, self.tokenizer.quantizer.canvases(tokens_BL), strict=True)):
            values = digits.columns(part, self.tokenizer.config.counted).flatten()
            self.counts_KV[k] += torch.bincount(values, minlength=self.counts_KV.shape[1]).cpu()
            self.residual_K[k] += (f_BCHW - canvas).double().square().sum().cpu()
            yield eight_bits(self.tokenizer.paint(canvas))

    def looked(self) -> Looked:
        """Of all processes, on all of them."""
        return Looked(
            originals=self.originals.gathered(),
            painted=self.painted.gathered(),
            each=Each(*distributed.summed(self.each_3N)),  # zero everywhere but where its picture was seen
            scales=self._scales(),
        )

    def _scales(self) -> tuple[ScaleFigures, ...]:
        """The figures of each scale."""
        pictures, sizes = self.each_3N.shape[1], self.tokenizer.config.counted
        counts_KV, energy = distributed.summed(self.counts_KV), float(distributed.summed(self.energy))
        residual_K, decibels_K = distributed.summed(self.residual_K), distributed.summed(self.decibels_K)
        entropy_K = torch.stack([entropy_bits(counts) for counts in counts_KV.split([*sizes], dim=1)]).sum(dim=0)
        return tuple(
            ScaleFigures(
                size=f"{h}x{w}",
                tokens=h * w,
                used=int(counts_KV[k].count_nonzero()),
                possible=sum(min(size, pictures * h * w) for size in sizes),
                perplexity=float(entropy_K[k].exp2()),
                residual=float(residual_K[k]) / energy if energy else 0.0,
                psnr=float(decibels_K[k]) / pictures,
            )
            for k, (h, w) in enumerate(self.tokenizer.config.scales)
        )


def tokenizer_fingerprint(tokenizer: MultiScaleVQVAE) -> str:
    """16 hex digits that change with the architecture and with any weight."""
    return fingerprint([to_json(tokenizer.config), checkpoint.fingerprint(tokenizer.state_dict())])
