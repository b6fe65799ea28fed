"""Laws of DINO's ViT-S with random weights: against torch's own transformer layer, and its files by all their names."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale import features, hub
from nextscale.errors import InputError
from nextscale.features import FeatureNetwork, PerceptualDistance, dino
from nextscale.features.network import resized

GRID = 14


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """DINO's names and shapes, patches of 16 pixels, weights large enough that each matters."""
    generator = torch.Generator().manual_seed(8)

    def draw(*shape: int, scale: float = 0.05) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    tensors = {
        "cls_token": draw(1, 1, 384, scale=1),
        "pos_embed": draw(1, 1 + GRID**2, 384, scale=1),
        "patch_embed.proj.weight": draw(384, 3, 16, 16),
        "patch_embed.proj.bias": draw(384),
    }
    norms = ["norm"]
    for block in (f"blocks.{i}." for i in range(12)):
        norms += [block + "norm1", block + "norm2"]
        for name, outs, ins in (
            ("attn.qkv", 1152, 384),
            ("attn.proj", 384, 384),
            ("mlp.fc1", 1536, 384),
            ("mlp.fc2", 384, 1536),
        ):
            tensors |= {f"{block}{name}.weight": draw(outs, ins), f"{block}{name}.bias": draw(outs)}
    for norm in norms:
        tensors |= {f"{norm}.weight": 1 + draw(384, scale=0.3), f"{norm}.bias": draw(384)}
    return tensors


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> FeatureNetwork:
    return dino.build(state)


@pytest.fixture
def pictures() -> Tensor:
    """Two pictures of 48x64 pixels."""
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def layer(state: dict[str, Tensor], block: str) -> nn.Module:
    """torch's transformer layer with the weights of one block."""
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    made = nn.TransformerEncoderLayer(
        384, 6, 1536, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    made.load_state_dict({t + end: state[block + o + end] for t, o in names.items() for end in ("weight", "bias")})
    return made


@torch.no_grad()
def test_maps_and_features_are_those_of_torchs_transformer_layers(
    network: FeatureNetwork, state: dict[str, Tensor], pictures: Tensor
) -> None:
    """At the size of the learned positions: patches one by one, then twelve pre-norm layers with exact GELU."""
    image = pictures[:1].repeat(1, 1, 5, 4)[..., :224, :224]
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    pixels = (((image + 1) / 2 - mean) / deviation)[0]
    weight = state["patch_embed.proj.weight"].flatten(1)
    patches = [
        weight @ pixels[:, y : y + 16, x : x + 16].flatten() + state["patch_embed.proj.bias"]
        for y in range(0, 224, 16)
        for x in range(0, 224, 16)
    ]
    tokens = torch.stack([state["cls_token"][0, 0], *patches])[None] + state["pos_embed"]
    found = dict(zip((2, 5, 8, 11), network.maps(image), strict=True))
    for i in range(12):
        tokens = layer(state, f"blocks.{i}.")(tokens)
        if i in found:
            expected = tokens[:, 1:].transpose(1, 2).reshape(1, 384, GRID, GRID)
            torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-3)
    norm = nn.functional.layer_norm(tokens[:, 0], (384,), state["norm.weight"], state["norm.bias"], eps=1e-6)
    torch.testing.assert_close(network(image), norm, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_maps_are_grids_of_patches_at_any_size(network: FeatureNetwork, pictures: Tensor) -> None:
    """A cell for each 16x16 pixels, rows and columns not mixed up, after enlarging where that is asked for."""
    maps = network.maps(pictures)
    assert [tuple(m.shape) for m in maps] == [(2, 384, 3, 4)] * 4
    assert network.channels == (384,) * 4
    assert network.maps(pictures, side=96)[0].shape[2:] == (6, 8)
    changed = pictures.clone()
    changed[0, :, 16:32, 48:64] += 0.5
    moved = (network.maps(changed)[0] - maps[0]).norm(dim=1)
    assert moved[1].max() == 0
    assert moved[0].argmax() == 1 * 4 + 3


@torch.no_grad()
def test_features_are_the_class_token_at_224_pixels(network: FeatureNetwork, pictures: Tensor) -> None:
    """(B, 384) float32; the name tells the patch."""
    assert network(pictures).shape == (2, network.dimensions) == (2, 384)
    assert network.name == "DINO-S16"
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_distance_looks_through_it_too(network: FeatureNetwork, pictures: Tensor) -> None:
    """One number a picture, with a gradient for the painted ones."""
    painted = (pictures * 0.9).requires_grad_()
    costs = PerceptualDistance(network, side=None)(painted, pictures)
    assert (costs > 0).all()
    costs.sum().backward()
    assert painted.grad is not None
    assert painted.grad.abs().sum() > 0


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as facebook/dino-vits16 has them, written out name by name."""
    tensors = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
    }
    for end in ("weight", "bias"):
        tensors[f"layernorm.{end}"] = state[f"norm.{end}"]
        for i in range(12):
            ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
            for part, tensor in zip(("query", "key", "value"), state[f"{ours}attn.qkv.{end}"].chunk(3), strict=True):
                tensors[f"{theirs}attention.attention.{part}.{end}"] = tensor.clone()
            tensors[f"{theirs}attention.output.dense.{end}"] = state[f"{ours}attn.proj.{end}"]
            tensors[f"{theirs}intermediate.dense.{end}"] = state[f"{ours}mlp.fc1.{end}"]
            tensors[f"{theirs}output.dense.{end}"] = state[f"{ours}mlp.fc2.{end}"]
            tensors[f"{theirs}layernorm_before.{end}"] = state[f"{ours}norm1.{end}"]
            tensors[f"{theirs}layernorm_after.{end}"] = state[f"{ours}norm2.{end}"]
    return tensors


def test_file_may_be_a_training_checkpoint(network: FeatureNetwork, state: dict[str, Tensor], tmp_path: Path) -> None:
    """The teacher is taken, its head left out, prefixes taken off: the same weights, the same fingerprint."""
    teacher = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    head = {"module.head.mlp.0.weight": torch.zeros(2), "module.head.last_layer.weight_g": torch.zeros(2)}
    torch.save({"student": {}, "teacher": teacher | head, "epoch": 99}, tmp_path / "checkpoint.pth")
    assert features.load(tmp_path / "checkpoint.pth").fingerprint == network.fingerprint


def test_repository_of_the_transformers_library_is_understood(
    network: FeatureNetwork, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a hub name; safetensors where there are some, otherwise the pickle."""
    safetensors.torch.save_file(transformers_names(state), tmp_path / "model.safetensors")

    def fetch(name: str, file: str, *, offline: bool) -> Path:
        if not (tmp_path / file).exists():
            raise InputError(f"no {file}")
        return tmp_path / file

    monkeypatch.setattr(hub, "_answers", lambda name, file: True)
    monkeypatch.setattr(hub, "_file", fetch)
    assert features.load("facebook/dino-vits16").fingerprint == network.fingerprint
    (tmp_path / "model.safetensors").rename(tmp_path / "moved.safetensors")
    torch.save({f"vit.{n}": t for n, t in transformers_names(state).items()}, tmp_path / "pytorch_model.bin")
    assert features.load("facebook/dino-vits16").fingerprint == network.fingerprint


def test_other_transformers_are_refused(state: dict[str, Tensor]) -> None:
    """One of another size, and one that was trained with labels and has a head to show for it."""
    with pytest.raises(InputError, match=r"positions \(1, 1 \+ n², 384\), got \(1, 198, 384\)"):
        dino.build(state | {"pos_embed": torch.zeros(1, 198, 384)})
    with pytest.raises(InputError, match="weights do not fit the DINO: head.weight is not expected"):
        dino.build(state | {"head.weight": torch.zeros(1000, 384)})
    with pytest.raises(InputError, match="weights do not fit the DINO: blocks.3.mlp.fc1.bias should be"):
        dino.build(state | {"blocks.3.mlp.fc1.bias": torch.zeros(7)})


def test_one_walk_gives_features_and_the_last_map(network: FeatureNetwork, pictures: Tensor) -> None:
    """The same as two walks give, of pictures at the network's own size."""
    with torch.no_grad():
        seen, tapped = network.features_and_map(pictures)
        torch.testing.assert_close(seen, network(pictures))
        torch.testing.assert_close(tapped, network.maps(resized(pictures, network.side, network.side))[-1])
