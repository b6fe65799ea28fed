"""Laws of EfficientNet-Lite0: against a plain computation from the package's tensors, and against what emoji show."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import data, features, images
from nextscale.features import efficientnet
from nextscale.features.efficientnet import EfficientNetLite0
from nextscale.features.network import resized

THINGS = """
    banana 954; pizza 963; strawberry 949; lemon 951; pineapple 953; broccoli 937;
    hourglass done 604; hourglass not done 604; hamburger 933; hot dog 934; pretzel 932; bagel 931;
    umbrella 879; teapot 849; hammer 587; screwdriver 784; basketball 430; soccer ball 805;
    baseball 429; tennis 852; ambulance 407; fire engine 555; violin 889; drum 541;
    spider web 815; necktie 906; toilet 861; bathtub 435; bell pepper 945; cucumber 943;
    soft ice cream 928; locomotive 820; accordion 401; backpack 414; mosque 663; volcano 980
"""  # each with the number of its ImageNet class


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return efficientnet.load()


@pytest.fixture
def pictures() -> Tensor:
    """Three pictures of 30x41 pixels."""
    return torch.rand(3, 3, 30, 41, generator=torch.Generator().manual_seed(2)) * 2 - 1


def slow_logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network from the package's own tensors, batch norms unfolded, the padding by TensorFlow's formula."""

    def convolve(x: Tensor, name: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        before, after = total // 2, total - total // 2
        groups = len(weight) if weight.shape[1] == 1 else 1
        x = F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)
        mean, variance, gain, bias = (
            state[f"{norm}.{end}"] for end in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gain, bias, eps=1e-3)

    x = convolve(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    for i in range(16):
        shortcut, name = x, f"_blocks.{i}."
        if i > 0:
            x = convolve(x, name + "_expand_conv", name + "_bn0", 1).clamp(0, 6)
        x = convolve(x, name + "_depthwise_conv", name + "_bn1", 2 if i in (1, 3, 5, 11) else 1).clamp(0, 6)
        x = convolve(x, name + "_project_conv", name + "_bn2", 1)
        x = x + shortcut if x.shape == shortcut.shape else x
    x = convolve(x, "_conv_head", "_bn1", 1).clamp(0, 6).mean(dim=(2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 97])
def test_folded_network_is_the_unfolded_one(network: EfficientNetLite0, side: int) -> None:
    """Folding batch norms into convolutions moves the scores of the classes by rounding only."""
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = slow_logits(efficientnet.packaged(), pixels)
    torch.testing.assert_close(network.classifier(network.embed(pixels)), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_drawings_of_things_are_named_as_these_things(network: EfficientNetLite0) -> None:
    """Weights, padding and the scaling of pixels are right: half of the things have their class among the first five.

    One in 200 would by chance. ImageNet's mean and deviation make the right class less likely.
    """
    things = dict(thing.strip().rsplit(" ", 1) for thing in THINGS.split(";"))
    pictures = data.load("emoji", height=64, width=64).train
    found = [i for i, name in enumerate(pictures.names) if name.removesuffix(" (noto)") in things]
    classes = torch.tensor([int(things[pictures.names[i].removesuffix(" (noto)")]) for i in found])
    seen = pictures.batch(found)[0]
    scores = network.logits(seen)
    assert (scores.topk(5).indices == classes[:, None]).any(dim=1).float().mean() > 0.5
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    otherwise = network.logits(((images.to_unit(seen) - mean) / deviation * 128 + 127) / 127.5 - 1)
    assert F.cross_entropy(scores, classes) < F.cross_entropy(otherwise, classes) - 0.2


@torch.no_grad()
def test_features_are_what_the_classifier_reads(network: EfficientNetLite0, pictures: Tensor) -> None:
    """(B, 1280) float32 of pictures of any size, frozen, not below 0."""
    found = network(pictures)
    assert found.shape == (3, network.dimensions)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    torch.testing.assert_close(network.classifier(found), network.logits(pictures))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@torch.no_grad()
def test_features_of_a_picture_do_not_depend_on_its_batch_or_on_autocast(
    network: EfficientNetLite0, pictures: Tensor
) -> None:
    """Alone or among others, in whatever precision the caller's loop runs."""
    together = network(pictures)
    torch.testing.assert_close(network(pictures[1:2]), together[1:2], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(pictures), together)


def test_maps_go_from_fine_to_coarse_and_know_the_size_asked_for(network: EfficientNetLite0, pictures: Tensor) -> None:
    """Each map is half as wide as the one before; a smaller picture is enlarged, a larger one is left as it is."""
    natural = network.maps(pictures, side=20)
    assert [tuple(m.shape[1:]) for m in natural] == [(24, 8, 11), (40, 4, 6), (112, 2, 3)]
    enlarged = network.maps(pictures, side=60)
    assert [tuple(m.shape[2:]) for m in enlarged] == [(15, 21), (8, 11), (4, 6)]
    assert all(torch.equal(a, b) for a, b in zip(network.maps(pictures), natural, strict=True))


def test_fingerprint_follows_the_weights(network: EfficientNetLite0) -> None:
    """The same file twice has one fingerprint; a change of one number in it has another."""
    again = features.load("efficientnet-lite0")
    assert again.name == "EffNetLite0"
    assert again.fingerprint == network.fingerprint
    assert len(again.fingerprint) == 16
    tensors = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    tensors["stem.bias"][3] += 1e-3
    again.assign(tensors)
    assert again.fingerprint != network.fingerprint


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_what_is_no_batch_of_pictures_is_refused(network: EfficientNetLite0, bad: Tensor) -> None:
    """One line says what was expected and what came."""
    with pytest.raises(ValueError, match=r"expected shape \(batch, 3, height, width\), float in \[-1, 1\], got"):
        network(bad)
    with pytest.raises(ValueError, match="expected shape"):
        network.maps(bad)


def test_pixels_are_scaled_as_the_weights_were_trained(network: EfficientNetLite0) -> None:
    """A level of 127 is 0 and one of 255 is 1."""
    levels = torch.tensor([127, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    torch.testing.assert_close(network.pixels(images.from_uint8(levels), 1, 1)[:, 0, 0, 0], torch.tensor([0.0, 1.0]))


def test_one_walk_gives_features_and_the_last_map(network: EfficientNetLite0, pictures: Tensor) -> None:
    """The same as two walks give, of pictures at the network's own size."""
    with torch.no_grad():
        seen, tapped = network.features_and_map(pictures)
        torch.testing.assert_close(seen, network(pictures))
        torch.testing.assert_close(tapped, network.maps(resized(pictures, network.side, network.side))[-1])
