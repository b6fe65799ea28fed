"""Inception of 2015, the network that FID, KID, sFID and the Inception score are defined with.

This is TensorFlow's graph `inception-2015-12-05`, oddities included: 1008 classes, averages that leave padding out, one
maximum where all other blocks average, and a resize of its own. The published weights are read by the names that
torch-fidelity and pytorch-fid gave them; each batch norm is folded into the convolution before it.

Shapes: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import hub
from nextscale.features.efficientnet import fold
from nextscale.features.network import FeatureNetwork
from nextscale.files import checkpoint

NAME = "Inception-2015"
SIDE = 299
CLASSES = 1008
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # how that file's begins
TAPPED = ("MaxPool_1", "MaxPool_2", "Mixed_5d", "Mixed_6d")  # layers whose outputs are `maps`
NORM = ("weight", "bias", "running_mean", "running_var")  # of a batch norm

Kernel = tuple[int, int]
Step = tuple[int, Sequence[Kernel]]
"""Channels, and kernels: several look at the same input, and their channels are joined."""
Branches = dict[str, Sequence[Step]]

ONE, THREE, FIVE = [(1, 1)], [(3, 3)], [(5, 5)]
ROW, COLUMN = [(1, 7)], [(7, 1)]
CROSS = [(1, 3), (3, 1)]


class Convolution(nn.Conv2d):
    """relu(conv(x)): with stride 1 it keeps the size unless `valid`; with stride 2 no padding is added."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Kernel, *, stride: int = 1, valid: bool = False
    ) -> None:
        padding = (0, 0) if valid or stride > 1 else (kernel[0] // 2, kernel[1] // 2)
        super().__init__(channels_in, channels_out, kernel, stride, padding)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu_(super().forward(x_BCHW))


class Block(nn.Module):
    """Branches side by side over one input, their outputs joined: [branch(x), ..., branch_pool(pooled(x))].

    Arguments:
        branches: by name, each a chain of steps.
        pool: "average" or "maximum", what `branch_pool` sees; "halve" has none, but halves the sides: the last steps of
            its branches have stride 2, and beside them stands a maximum of the input.
    """

    def __init__(self, channels_in: int, branches: Branches, *, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.chains: dict[str, list[list[str]]] = {}
        for name, steps in branches.items():
            self.chains[name] = list(self._chain(name, steps, channels_in, halve=pool == "halve"))
        ends = sum(channels * len(kernels) for channels, kernels in (steps[-1] for steps in branches.values()))
        self.channels = ends + (channels_in if pool == "halve" else 0)

    def _chain(self, name: str, steps: Sequence[Step], before: int, *, halve: bool) -> Iterator[list[str]]:
        """Adds a branch's convolutions under the names of the weight files, and gives these names step by step."""
        for number, (channels, kernels) in enumerate(steps, start=1):
            numbered = name if len(steps) == 1 else f"{name}_{number}"
            names = [numbered + letter for letter in ("ab" if len(kernels) > 1 else [""])]
            for each, kernel in zip(names, kernels, strict=True):
                stride = 2 if halve and number == len(steps) else 1
                self.add_module(each, Convolution(before, channels, kernel, stride=stride))
            before = channels * len(kernels)
            yield names

    def forward(self, x_BCHW: Tensor) -> Tensor:
        outputs = [self._branch(name, x_BCHW) for name in self.chains]
        outputs += [F.max_pool2d(x_BCHW, 3, stride=2)] if self.pool == "halve" else []
        return torch.cat(outputs, dim=1)

    def _branch(self, name: str, x_BCHW: Tensor) -> Tensor:
        h = self._pooled(x_BCHW) if name == "branch_pool" else x_BCHW
        for names in self.chains[name]:
            parts = [self.get_submodule(each)(h) for each in names]
            h = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return h

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.pool == "maximum":
            return F.max_pool2d(x_BCHW, 3, stride=1, padding=1)
        return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


class Inception(FeatureNetwork):
    """Features: the 2048 averages before the classifier. The last map begins with the 7 channels that sFID looks at."""

    name = NAME
    dimensions = 2048
    channels = (64, 192, 288, 768)
    side = SIDE
    resize = "bilinear without antialiasing, as TensorFlow 1"

    def __init__(self) -> None:
        super().__init__(mean=(128 / 255, 128 / 255, 128 / 255), deviation=(128 / 255, 128 / 255, 128 / 255))
        with torch.device("meta"):
            self.layers = nn.ModuleDict(_layers())
            # without a bias: the Inception score is defined on the product alone
            self.classifier = nn.Linear(self.dimensions, CLASSES, bias=False)

    def pixels(self, images_B3HW: Tensor, height: int, width: int) -> Tensor:
        """Rounded to the 8 bits that the graph reads, resized as it does, (level - 128) / 128; differentiable."""
        exact_B3HW = images_B3HW.add(1).mul(127.5)
        levels_B3HW = exact_B3HW + (exact_B3HW.round() - exact_B3HW).detach()  # the gradient passes by the rounding
        return (resized(levels_B3HW, height, width) - 128) / 128

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        return self.embed_and_tap(pixels_B3HW)[0]

    def embed_and_tap(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        outputs = dict(self._outputs(pixels_B3HW))
        return outputs["Mixed_7c"].mean(dim=(2, 3)), outputs[TAPPED[-1]]

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        maps = []
        for name, output_BCHW in self._outputs(pixels_B3HW):
            maps += [output_BCHW] if name in TAPPED else []
            if name == TAPPED[-1]:
                break
        return maps

    def _outputs(self, pixels_B3HW: Tensor) -> Iterator[tuple[str, Tensor]]:
        h = pixels_B3HW
        for name, layer in self.layers.items():
            h = layer(h)
            yield name, h


# ---- the architecture ------------------------------------------------------------------------------------------------


def _layers() -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": Convolution(3, 32, (3, 3), stride=2),
        "Conv2d_2a_3x3": Convolution(32, 32, (3, 3), valid=True),
        "Conv2d_2b_3x3": Convolution(32, 64, (3, 3)),
        "MaxPool_1": nn.MaxPool2d(3, stride=2),
        "Conv2d_3b_1x1": Convolution(64, 80, (1, 1)),
        "Conv2d_4a_3x3": Convolution(80, 192, (3, 3), valid=True),
        "MaxPool_2": nn.MaxPool2d(3, stride=2),
    }
    before = 192
    for name, branches, pool in _blocks():
        block = Block(before, branches, pool=pool)
        layers[name], before = block, block.channels
    return layers


def _blocks() -> list[tuple[str, Branches, str]]:
    """Name, branches, pool: maps of 35x35, of 17x17 from 6a on, of 8x8 from 7a on."""
    return [
        ("Mixed_5b", _with_5x5(32), "average"),
        ("Mixed_5c", _with_5x5(64), "average"),
        ("Mixed_5d", _with_5x5(64), "average"),
        ("Mixed_6a", {"branch3x3": [(384, THREE)], "branch3x3dbl": [(64, ONE), (96, THREE), (96, THREE)]}, "halve"),
        ("Mixed_6b", _with_7x7(128), "average"),
        ("Mixed_6c", _with_7x7(160), "average"),
        ("Mixed_6d", _with_7x7(160), "average"),
        ("Mixed_6e", _with_7x7(192), "average"),
        (
            "Mixed_7a",
            {
                "branch3x3": [(192, ONE), (320, THREE)],
                "branch7x7x3": [(192, ONE), (192, ROW), (192, COLUMN), (192, THREE)],
            },
            "halve",
        ),
        ("Mixed_7b", _with_crosses(), "average"),
        ("Mixed_7c", _with_crosses(), "maximum"),
    ]


def _with_5x5(pooled: int) -> Branches:
    return {
        "branch1x1": [(64, ONE)],
        "branch5x5": [(48, ONE), (64, FIVE)],
        "branch3x3dbl": [(64, ONE), (96, THREE), (96, THREE)],
        "branch_pool": [(pooled, ONE)],
    }


def _with_7x7(inner: int) -> Branches:
    return {
        "branch1x1": [(192, ONE)],
        "branch7x7": [(inner, ONE), (inner, ROW), (192, COLUMN)],
        "branch7x7dbl": [(inner, ONE), (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)],
        "branch_pool": [(192, ONE)],
    }


def _with_crosses() -> Branches:
    return {
        "branch1x1": [(320, ONE)],
        "branch3x3": [(384, ONE), (384, CROSS)],
        "branch3x3dbl": [(448, ONE), (384, THREE), (384, CROSS)],
        "branch_pool": [(192, ONE)],
    }


# ---- resizing --------------------------------------------------------------------------------------------------------


def resized(levels_B3HW: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear`: corners not aligned, no half pixels, nothing widened when shrinking."""
    return _stretched(_stretched(levels_B3HW, width, dim=3), height, dim=2)


# out[i] = x[floor(p)] + (x[floor(p) + 1] - x[floor(p)]) (p - floor(p)),  p = i n / size, float32 as in TensorFlow
def _stretched(levels_B3HW: Tensor, size: int, *, dim: int) -> Tensor:
    n = levels_B3HW.shape[dim]
    if n == size:
        return levels_B3HW
    places = torch.arange(size, dtype=torch.float32, device=levels_B3HW.device) * (n / size)
    before = places.long()
    share = places - before
    low = levels_B3HW.index_select(dim, before)
    high = levels_B3HW.index_select(dim, (before + 1).clamp_max(n - 1))
    return low + (high - low) * (share[:, None] if dim == 2 else share)


# ---- weights ---------------------------------------------------------------------------------------------------------


def fetched() -> Path:
    """The published weights, 95 MB, downloaded once to where torch-fidelity also keeps them.

    Raises `InputError` when they can be neither found nor fetched.
    """
    return hub.download(URL, sha256=SHA256)


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these look like an Inception network of the third version, by torchvision's names."""
    return "Conv2d_1a_3x3.conv.weight" in tensors


def build(tensors: Mapping[str, Tensor]) -> Inception:
    """The network from the published state dict. Raises `InputError` for another, such as torchvision's own."""
    network = Inception()
    unused = ("fc.bias", "num_batches_tracked")
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(unused)}
    checkpoint.check_fit(NAME, published(network), given)
    ours = {"classifier.weight": given["fc.weight"]}
    for name in _convolutions(network):
        parts = [given[f"{name}.bn.{end}"] for end in NORM]
        ours[f"layers.{name}.weight"], ours[f"layers.{name}.bias"] = fold(given[f"{name}.conv.weight"], *parts)
    network.assign(ours)
    return network


def published(network: Inception) -> dict[str, Tensor]:
    """Under the names of the published weights, tensors of ours that have their shapes; `fc.bias` is not among them."""
    expected: dict[str, Tensor] = {"fc.weight": network.classifier.weight}
    for name, convolution in _convolutions(network).items():
        assert convolution.bias is not None
        expected[f"{name}.conv.weight"] = convolution.weight
        expected |= {f"{name}.bn.{end}": convolution.bias for end in NORM}
    return expected


def _convolutions(network: Inception) -> dict[str, Convolution]:
    named = network.layers.named_modules()
    return {name: module for name, module in named if isinstance(module, Convolution)}
