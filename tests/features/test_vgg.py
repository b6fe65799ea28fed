"""Laws of VGG16 with random weights: against plain convolutions, and LPIPS against its formula."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import features
from nextscale.errors import InputError
from nextscale.features import FeatureNetwork, PerceptualDistance, efficientnet
from nextscale.features.network import resized

CONVOLUTIONS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512}
CONVOLUTIONS |= {28: 512}  # torchvision's number of each, and its channels


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """torchvision's VGG16: its names and shapes, a classifier cut short."""
    generator, before, tensors = torch.Generator().manual_seed(4), 3, {"classifier.0.weight": torch.zeros(1, 1)}
    for number, after in CONVOLUTIONS.items():
        tensors[f"features.{number}.weight"] = (
            torch.randn(after, before, 3, 3, generator=generator) / (4 * before) ** 0.5
        )
        tensors[f"features.{number}.bias"] = torch.randn(after, generator=generator) * 0.1
        before = after
    return tensors


@pytest.fixture(scope="module")
def path(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(path: Path) -> FeatureNetwork:
    return features.load(path)


@pytest.fixture
def pictures() -> Tensor:
    """Four pictures of 24x36 pixels."""
    return torch.rand(4, 3, 24, 36, generator=torch.Generator().manual_seed(2)) * 2 - 1


def slow_maps(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """One convolution after another, by torchvision's numbers, the pixels normalised as ImageNet's."""
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    x, maps = ((images + 1) / 2 - mean) / deviation, []
    for number in CONVOLUTIONS:
        if number in (5, 10, 17, 24):
            maps.append(x)
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1).clamp_min(0)
    return [*maps, x]


@torch.no_grad()
def test_maps_are_those_of_plain_convolutions(
    network: FeatureNetwork, state: dict[str, Tensor], pictures: Tensor
) -> None:
    """The last ReLU of five stages, each half as wide as the one before; their channels are as announced."""
    maps = network.maps(pictures)
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 36), (12, 18), (6, 9), (3, 4), (1, 2)]
    assert tuple(m.shape[1] for m in maps) == network.channels
    for found, expected in zip(maps, slow_maps(state, pictures), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_distance_with_heads_is_lpips(
    network: FeatureNetwork, state: dict[str, Tensor], pictures: Tensor, tmp_path: Path
) -> None:
    """Cell by cell: unit lengths over channels, squared differences weighted by channel, means over cells, a sum."""
    generator = torch.Generator().manual_seed(6)
    heads = [torch.rand(1, channels, 1, 1, generator=generator) for channels in network.channels]
    torch.save({f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, tmp_path / "lpips.pth")
    distance = PerceptualDistance(network, heads=features.read_heads(tmp_path / "lpips.pth"), side=None)
    painted, originals = slow_maps(state, pictures[:1]), slow_maps(state, pictures[1:2])
    expected = 0.0
    for a, b, head in zip(painted, originals, heads, strict=True):
        cells = a[0].flatten(1).T, b[0].flatten(1).T
        parts = [
            (head.flatten() * (p / (p.norm() + 1e-10) - o / (o.norm() + 1e-10)) ** 2).sum()
            for p, o in zip(*cells, strict=True)
        ]
        expected += float(sum(parts)) / len(parts)
    assert float(distance(pictures[:1], pictures[1:2])) == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(distance(pictures[:1], pictures[1:2])) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_features_are_averages_of_the_last_map(network: FeatureNetwork, pictures: Tensor) -> None:
    """Of the picture at 224 pixels a side."""
    found = network(pictures[:1])
    resized = F.interpolate(pictures[:1], (224, 224), mode="bicubic", antialias=True)
    torch.testing.assert_close(found, network.maps(resized)[-1].mean(dim=(2, 3)))
    assert found.shape == (1, network.dimensions)
    assert network.name == "VGG16"


def test_fingerprint_is_of_the_weights_not_of_the_file(
    network: FeatureNetwork, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """safetensors or pickle, with or without a classifier and a prefix: the same weights are the same network."""
    path = tmp_path / "vgg.safetensors"
    bare = {f"module.{name}": tensor for name, tensor in state.items() if name.startswith("features")}
    safetensors.torch.save_file(bare, path)
    assert features.load(path).fingerprint == network.fingerprint


def test_heads_of_another_network_are_refused(network: FeatureNetwork, path: Path, tmp_path: Path) -> None:
    """Before anything is computed, naming the network; and a file without heads is no file of heads."""
    heads = [torch.ones(channels) for channels in network.channels]
    with pytest.raises(InputError, match=r"expected \(24, 40, 112\) weights for the maps of EffNetLite0, got \(64, 1"):
        PerceptualDistance(efficientnet.load(), heads=heads)
    with pytest.raises(InputError, match="expected the heads lin0.model.1.weight"):
        features.read_heads(path)


def test_file_of_another_network_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    """One line: what was expected, and what is wrong or where to look."""
    path = tmp_path / "weights.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected the weights of .*VGG16 or of DINO's ViT-S, got those of another"):
        features.load(path)
    torch.save({name: tensor for name, tensor in state.items() if name != "features.28.bias"}, path)
    with pytest.raises(InputError, match="weights do not fit the VGG16: features.28.bias is missing"):
        features.load(path)
    torch.save({"state": 3}, path)
    with pytest.raises(InputError, match="expected a state dict"):
        features.load(path)
    path.write_text("no weights")
    with pytest.raises(InputError, match="expected a checkpoint of tensors"):
        features.load(path)


def test_unknown_name_is_answered_with_what_there_is() -> None:
    """Networks by their names, files, repositories, and Python's own."""
    expected = "expected efficientnet-lite0, inception-2015, a file .*, a hub repository .*, or module:function"
    with pytest.raises(InputError, match=f"{expected}, got inception"):
        features.load("inception")


@pytest.mark.slow
def test_one_walk_gives_features_and_the_last_map(
    network: FeatureNetwork, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as two walks give, of pictures at the network's own size; here a small one, to be quick."""
    monkeypatch.setattr(network, "side", 64)
    with torch.no_grad():
        seen, tapped = network.features_and_map(pictures)
        torch.testing.assert_close(seen, network(pictures))
        torch.testing.assert_close(tapped, network.maps(resized(pictures, network.side, network.side))[-1])
