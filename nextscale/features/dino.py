"""DINO's ViT-S, a vision transformer trained without labels, for those who have its weights.

Maps for a discriminator or a distance, the class token as features. Modules are named as in DINO's own state dicts;
those of the transformers library are renamed. Shapes: B batch, H W pixels, N tokens (one of the class, then h w
patches), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InputError
from nextscale.features.network import FeatureNetwork

WIDTH, DEPTH, HEADS = 384, 12, 6
TAPPED = (2, 5, 8, 11)  # blocks, counted from 0, whose outputs are `maps`

RENAMES = (  # the transformers library -> DINO, in this order
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm.", "norm."),
)
UNUSED = ("head.mlp.", "head.last_layer.", "pooler.")  # what only DINO's training, or nobody, needs


class Attention(nn.Module):
    """Every token attends to every token."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BNC).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BNC)))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = FeedForward()

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        return x_BNC + self.mlp(self.norm2(x_BNC))


class DINO(FeatureNetwork):
    """Maps: the patches after blocks 2, 5, 8 and 11. Features: the class token after the last norm.

    Arguments:
        patch: pixels a side.
        grid: patches a side that the learned positions are for; for another number they are resampled.
    """

    dimensions = WIDTH
    channels = (WIDTH,) * len(TAPPED)

    def __init__(self, *, patch: int, grid: int) -> None:
        super().__init__()
        self.name = f"DINO-S{patch}"
        self.grid = grid
        with torch.device("meta"):
            self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid**2, WIDTH))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, patch, patch)})
            self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
            self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        *_, tokens_BNC = self._outputs(self._patches(pixels_B3HW))
        return self.norm(tokens_BNC[:, 0])

    def activations(self, pixels_B3HW: Tensor) -> list[Tensor]:
        patches_BChw = self._patches(pixels_B3HW)
        outputs = list(self._outputs(patches_BChw))
        return [outputs[i][:, 1:].transpose(1, 2).unflatten(2, patches_BChw.shape[2:]) for i in TAPPED]

    def _patches(self, pixels_B3HW: Tensor) -> Tensor:
        return self.patch_embed["proj"](pixels_B3HW)

    def _outputs(self, patches_BChw: Tensor) -> Iterator[Tensor]:
        """The tokens (B, N, C) after each block."""
        height, width = patches_BChw.shape[2:]
        start = self.cls_token.expand(len(patches_BChw), -1, -1)
        tokens_BNC = torch.cat([start, patches_BChw.flatten(2).transpose(1, 2)], dim=1)
        tokens_BNC = tokens_BNC + self._positions(height, width)
        for block in self.blocks:
            tokens_BNC = block(tokens_BNC)
            yield tokens_BNC

    def _positions(self, height: int, width: int) -> Tensor:
        """The learned positions, (1, N, C), resampled bicubically where the grid is another."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        start, grid = self.pos_embed.split([1, self.grid**2], dim=1)
        grid_1Chw = grid.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        resampled = F.interpolate(grid_1Chw, (height, width), mode="bicubic")
        return torch.cat([start, resampled.flatten(2).transpose(1, 2)], dim=1)


# ---- weights ---------------------------------------------------------------------------------------------------------


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these look like a vision transformer, by DINO's names or those of the transformers library."""
    return "patch_embed.proj.weight" in tensors or "embeddings.patch_embeddings.projection.weight" in tensors


def build(tensors: Mapping[str, Tensor]) -> DINO:
    """The network from a state dict. Raises `InputError` for one of another size or another training."""
    state = renamed(tensors)
    positions = state.get("pos_embed", torch.empty(1, 0, WIDTH)).shape
    patch, grid = state["patch_embed.proj.weight"].shape[-1], math.isqrt(max(positions[1] - 1, 0))
    if grid == 0 or positions != (1, 1 + grid**2, WIDTH):
        raise InputError(f"expected DINO's ViT-S with positions (1, 1 + n², {WIDTH}), got {tuple(positions)}")
    network = DINO(patch=patch, grid=grid)
    network.assign(state)
    return network


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under DINO's names and without what is unused; queries, keys and values joined into one matrix."""
    state = {_rename(name): tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    for name in [name for name in state if ".attention.attention.query." in name]:
        parts = [state.pop(name.replace("query", part), torch.empty(0)) for part in ("query", "key", "value")]
        state[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return state


def _rename(name: str) -> str:
    for theirs, ours in RENAMES:
        name = name.replace(theirs, ours)
    return name
