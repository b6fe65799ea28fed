"""Laws of networks that users bring: any module, and a network by the name of a Python function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nextscale import features
from nextscale.errors import InputError
from nextscale.evaluation.gathering import Gathering, spatial_dimensions
from nextscale.features.network import resized


class Means(nn.Module):
    """Six numbers a picture, with a weight and something that differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Conv2d(3, 6, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.drop(self.mixed(pixels).mean(dim=(2, 3)))


@pytest.fixture
def pictures() -> Tensor:
    """Three pictures of 20x12 pixels."""
    return torch.rand(3, 3, 20, 12, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_features_are_what_the_module_gives(pictures: Tensor) -> None:
    """For pictures resized, shifted and scaled as was said, frozen and without what is random in training."""
    module = Means()
    network = features.of_module(module, name="means", side=16, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4))
    unit = (resized(pictures, 16, 16) + 1) / 2
    seen = (unit - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(network(pictures), module(seen))
    assert (network.name, network.dimensions, network.side) == ("means", 6, 16)
    assert not module.training
    assert not network(pictures).requires_grad


def test_fingerprint_is_of_weights_and_scaling() -> None:
    """The same again for equal ones, another for a changed weight, another scaling, another class of module."""
    module = Means()
    first = features.of_module(module, name="means", side=16).fingerprint
    assert first == features.of_module(module, name="means", side=16).fingerprint
    others = [features.of_module(module, name="means", side=16, mean=(0.5, 0.5, 0.5)).fingerprint]
    others.append(features.of_module(type("Others", (Means,), {})(), name="means", side=16).fingerprint)
    with torch.no_grad():
        module.mixed.weight[0, 0, 0, 0] += 1
    others.append(features.of_module(module, name="means", side=16).fingerprint)
    assert len({first, *others}) == 4


def test_pictures_are_gathered_through_it(pictures: Tensor) -> None:
    """Features alone: there are no maps for a spatial distance."""
    network = features.of_module(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), name="colours", side=8)
    assert spatial_dimensions(network) == 0
    gathering = Gathering(network, total=3)
    gathering.update(range(3), pictures)
    assert gathering.gathered().spatial is None
    assert gathering.features_ND.shape == (3, 3)


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (nn.Identity(), r"expected features \(2, D\) of 2 pictures, got \(2, 3, 8, 8\)"),
        (nn.Flatten(0), r"expected features \(2, D\) of 2 pictures, got \(384,\)"),
        (nn.Unflatten(1, (3, 2)), r"expected a module of pictures \(2, 3, 8, 8\) float32, got one that fails on them"),
        (nn.LSTM(8, 8), r"got one that fails on them"),
    ],
    ids=["maps", "no batch", "fails", "no pictures"],
)
def test_modules_that_give_no_features_are_refused(module: nn.Module, complaint: str) -> None:
    """At once, in one line, with what came."""
    with pytest.raises(InputError, match=f"odd: .*{complaint}") as caught:
        features.of_module(module, name="odd", side=8)
    assert "\n" not in str(caught.value)


def test_maps_of_a_module_are_refused(pictures: Tensor) -> None:
    """Whoever needs them hears that there are none."""
    network = features.of_module(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), name="colours", side=8)
    with pytest.raises(InputError, match="colours: expected a network with inner maps"):
        network.maps(pictures)
    with pytest.raises(InputError, match="colours: expected a network with inner maps"):
        features.PerceptualDistance(network)


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "Inception-2015"])
def test_names_that_cannot_stand_beside_figures_are_refused(name: str) -> None:
    """Nor that of the network whose figures are called FID."""
    with pytest.raises(InputError, match="name: expected a name for the metrics"):
        features.of_module(Means(), name=name)


def test_network_may_be_named_by_its_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Tensor
) -> None:
    """From a file in the working directory; a network that is there already will do, and the path stays as it was."""
    (tmp_path / "judges_of_mine.py").write_text(
        "from torch import nn\n"
        "from nextscale import features\n"
        "def colours():\n"
        "    return features.of_module(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), name='colours', side=8)\n"
        "made = colours()\n"
        "number = 3\n"
        "def broken(): return {}['key']\n"
    )
    monkeypatch.chdir(tmp_path)
    for path in ("judges_of_mine:colours", "judges_of_mine:made"):
        assert features.load(path)(pictures).shape == (3, 3)
    for path, complaint in (
        ("judges_of_mine:number", "judges_of_mine:number: expected a FeatureNetwork.*got int"),
        ("judges_of_mine:others", "MODULE:FUNCTION that can be imported, got judges_of_mine:others: .*no attribute"),
        ("judges_of_mine:broken", "judges_of_mine:broken: .* without arguments, got one that fails: KeyError: 'key'"),
        ("judges_of_mine:features", "judges_of_mine:features: expected a FeatureNetwork"),
        ("judges_of_others:colours", "got judges_of_others:colours: No module named 'judges_of_others'"),
    ):
        with pytest.raises(InputError, match=complaint):
            features.load(path)
