"""Inception of 2015 with a formula's weights: against torch-fidelity's numbers, and its oddities one by one."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
from features import inception_2015
from torch import Tensor

from nextscale import features, hub, images
from nextscale.errors import InputError
from nextscale.evaluation import card
from nextscale.evaluation.distances import spatial_features
from nextscale.evaluation.gathering import Gathering, spatial_dimensions
from nextscale.features import inception
from nextscale.features.inception import Block, Inception


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The published names and shapes."""
    return inception_2015.weights(inception.published(Inception()) | {"fc.bias": torch.empty(inception.CLASSES)})


@pytest.fixture(scope="module")
def path(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> Inception:
    return inception.build(state)


# ---- against another implementation ----------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("picture", inception_2015.pictures(), ids=lambda picture: "{2}x{3}".format(*picture.shape))
def test_numbers_are_those_of_torch_fidelity(network: Inception, picture: Tensor) -> None:
    """Pixels after the resize exactly; what sFID sees, features and logits to 1e-5 of the largest.

    The golden numbers were made with torch-fidelity 0.4.0 from the same weights and pictures, by
    scripts/make_inception_golden.py; over all numbers the largest difference was 4e-6 of the largest.
    """
    golden = inception_2015.golden()[f"{picture.shape[2]}x{picture.shape[3]}"]
    seen, tapped = network.features_and_map(images.from_uint8(picture))
    found = {
        "pixels": network.pixels(images.from_uint8(picture), 299, 299),
        "spatial": spatial_features(tapped),
        "features": seen,
        "logits": network.classifier(seen),
    }
    for name, tensor in found.items():
        expected = torch.tensor(golden[name])
        error = (torch.tensor(inception_2015.some(tensor)) - expected).abs().max()
        assert error <= (0 if name == "pixels" else 1e-5 * expected.abs().max()), name


# ---- its oddities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "target"), [((5, 7), (9, 6)), ((8, 8), (3, 20)), ((1, 2), (4, 4))])
def test_resize_is_tensorflows(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Pixel by pixel: the corner stays in the corner, places are i n / size, the last row and column repeat."""
    levels = inception_2015.uniform("levels", *size) * 255
    expected = np.zeros(target)
    for row, column in np.ndindex(*target):
        y, x = row * size[0] / target[0], column * size[1] / target[1]
        top, left = int(y), int(x)
        down, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
        above = levels[top, left] * (1 - (x - left)) + levels[top, right] * (x - left)
        below = levels[down, left] * (1 - (x - left)) + levels[down, right] * (x - left)
        expected[row, column] = above * (1 - (y - top)) + below * (y - top)
    found = inception.resized(torch.from_numpy(levels).float()[None, None], *target)
    torch.testing.assert_close(found[0, 0].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-3)


def test_every_level_of_eight_bits_comes_back_exactly(network: Inception) -> None:
    """All 256, from [-1, 1] and with an error as large as float32 may have made: (level - 128) / 128, bit for bit."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = (levels.float() - 128) / 128
    for error in (0, 1e-6, -1e-6):
        assert torch.equal(network.pixels(images.from_uint8(levels) + error, 16, 16), expected)


def test_averages_leave_padding_out() -> None:
    """Of a constant map they are that constant, at the borders too; a corner is a mean of four cells, not of nine."""
    block = Block(1, {"branch_pool": [(1, inception.ONE)]}, pool="average")
    assert torch.equal(block._pooled(torch.full((1, 1, 5, 5), 3.0)), torch.full((1, 1, 5, 5), 3.0))
    assert block._pooled(torch.eye(5)[None, None])[0, 0, 0, 0] == 0.5


def test_only_the_last_block_takes_the_maximum(network: Inception) -> None:
    """The others average, or halve."""
    pools = {name: layer.pool for name, layer in network.layers.items() if isinstance(layer, Block)}
    assert [name for name, pool in pools.items() if pool == "maximum"] == ["Mixed_7c"]
    assert [name for name, pool in pools.items() if pool == "halve"] == ["Mixed_6a", "Mixed_7a"]


# ---- what the rest of the package needs ------------------------------------------------------------------------------


def test_maps_are_as_announced_and_differentiable(network: Inception) -> None:
    """Four, fine to coarse; the rounding to 8 bits lets the gradient by."""
    picture = images.from_uint8(inception_2015.pictures()[2]).requires_grad_()
    maps = network.maps(picture, 96)
    assert tuple(m.shape[1] for m in maps) == network.channels
    assert [m.shape[-1] for m in maps] == sorted((m.shape[-1] for m in maps), reverse=True)
    maps[-1].sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


@torch.no_grad()
def test_one_walk_gives_features_and_the_last_map(network: Inception) -> None:
    """The same as two walks give, of a picture at the network's own size."""
    picture = images.from_uint8(inception_2015.pictures()[0])
    seen, tapped = network.features_and_map(picture)
    torch.testing.assert_close(seen, network(picture))
    torch.testing.assert_close(tapped, network.maps(picture)[-1])


def test_statistics_have_the_dimensions_of_published_ones(network: Inception) -> None:
    """2048 of mu, 2023 of mu_s: 7 channels of 17x17 cells."""
    assert network.dimensions == 2048
    assert spatial_dimensions(network) == 2023


def test_its_figures_alone_are_called_fid(network: Inception) -> None:
    """By the network's name, which no other network here has and none of a user's may take."""
    assert network.name == card.INCEPTION
    assert [card.figure_name(figure, network.name) for figure in ("FD", "sFD", "KD", "score")] == [
        "FID",
        "sFID",
        "KID",
        "IS",
    ]
    others = (features.load(), features.vgg.VGG16(), features.dino.DINO(patch=16, grid=14))
    assert all("FID" not in card.figure_name("FD", other.name) for other in others)
    with pytest.raises(InputError, match="other than Inception-2015"):
        features.of_module(torch.nn.Flatten(), name=inception.NAME)


def test_pictures_are_gathered_through_it(network: Inception) -> None:
    """Both Gaussians and the features, from a batch of pictures as a model paints them."""
    gathering = Gathering(network, total=2)
    gathering.update(range(2), images.from_uint8(torch.cat(inception_2015.pictures()[2:3] * 2)))
    assert gathering.features_ND.shape == (2, 2048)
    assert gathering.features_ND[0].std() > 0.1


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_file_is_recognised_by_its_tensors(network: Inception, state: dict[str, Tensor], path: Path) -> None:
    """Pickle or safetensors, with what training left in it or without: the same weights, the same fingerprint."""
    other = path.with_name("inception.safetensors")
    counts = {f"{name[:-7]}.num_batches_tracked": torch.tensor(0) for name in state if name.endswith("bn.weight")}
    bare = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    safetensors.torch.save_file({f"module.{name}": tensor for name, tensor in (bare | counts).items()}, other)
    for file in (path, other):
        found = features.load(file)
        assert (found.name, found.fingerprint) == ("Inception-2015", network.fingerprint)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.slow
def test_other_and_damaged_files_are_refused(state: dict[str, Tensor], path: Path) -> None:
    """torchvision's own Inception, of 1000 classes; one tensor short; one of another shape; a file cut off."""
    file = path.with_name("other.pth")
    theirs = {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.weight": torch.zeros(1)}
    for change, complaint in (
        (theirs, "AuxLogits.fc.weight is not expected; fc.weight should be"),
        ({"Mixed_6e.branch7x7_2.bn.running_var": torch.zeros(3)}, "running_var should be"),
    ):
        torch.save(state | change, file)
        with pytest.raises(InputError, match=f"weights do not fit the Inception-2015: .*{complaint}"):
            features.load(file)
    torch.save({name: tensor for name, tensor in state.items() if name != "Mixed_7c.branch_pool.bn.bias"}, file)
    with pytest.raises(InputError, match="Mixed_7c.branch_pool.bn.bias is missing"):
        features.load(file)
    file.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(InputError, match="other.pth: expected a checkpoint of tensors, got a damaged file"):
        features.load(file)


# ---- the download ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_published_weights_are_fetched_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name, into the folder where torch-fidelity looks for them too; then without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    calls = []

    def fetch(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        calls.append((url, hash_prefix))
        Path(target).write_bytes(path.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert features.load("inception-2015").name == features.load("inception-2015").name == "Inception-2015"
    assert calls == [(inception.URL, "6726825d")]
    assert [file.name for file in (tmp_path / "hub" / "checkpoints").iterdir()] == [inception.URL.rsplit("/", 1)[1]]


def test_failing_download_is_one_line_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and when what comes is another file, of which nothing stays."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fetch(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    with monkeypatch.context() as offline:
        offline.setattr(torch.hub, "download_url_to_file", fetch)
        with pytest.raises(InputError, match=f"cannot download {inception.URL}: .*no route to host.*by hand") as caught:
            features.load("inception-2015")
    assert "\n" not in str(caught.value)
    other = tmp_path / "other.pth"
    other.write_text("another file")
    with pytest.raises(InputError, match=r'cannot download file:.*invalid hash value \(expected "6726825d"'):
        hub.download(other.as_uri(), sha256="6726825d")
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
