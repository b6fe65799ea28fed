"""The small model of the golden numbers: as the release's state dicts, as a pipeline, and what the release computed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity import fill
from torch import Tensor

from nextscale import Pipeline, official
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.scales import Scales
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.transformer import VAR

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "tiny_64px.json").read_text())
CHECKPOINTS = json.loads((HERE / "official_checkpoints.json").read_text())
CONFIG = EXPECTED["config"]
LABELS = CONFIG["labels"]
SCALES = Scales(CONFIG["patch_nums"])

TOKENIZER = TokenizerConfig(
    scales=SCALES,
    codebook_size=CONFIG["vocab_size"],
    code_channels=CONFIG["z_channels"],
    channels=CONFIG["ch"],
    multipliers=(1, 1, 2, 2, 4),
    residual_blocks=2,
    phi_sharing="partial",
    phi_count=4,
    distance="euclidean",
)
TRANSFORMER = TransformerConfig(
    scales=SCALES,
    codebook_size=CONFIG["vocab_size"],
    code_channels=CONFIG["z_channels"],
    classes=CONFIG["num_classes"],
    depth=CONFIG["depth"],
    width=64 * CONFIG["depth"],
    heads=CONFIG["depth"],
    feed_forward=256 * CONFIG["depth"],
    normalized_attention=CONFIG["attn_l2_norm"],
    shared_modulation=CONFIG["shared_aln"],
)


@cache
def array(name: str) -> Tensor:
    """What the release computed."""
    with np.load(HERE / "tiny_64px.npz") as arrays:
        return torch.from_numpy(arrays[name])


@cache
def picture() -> Tensor:
    """The picture all the numbers are about, (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(fill.image(CONFIG["seed"], CONFIG["batch"], 64))


def shapes(tokenizer: TokenizerConfig, transformer: TransformerConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names and shapes of the release's two files for a pair of models, without any weights."""
    pipe = Pipeline(MultiScaleVQVAE(tokenizer, seed=None), VAR(transformer, seed=None), device="meta", precision="fp32")
    vae, var = official.export(pipe)
    return {n: tuple(t.shape) for n, t in vae.items()}, {n: tuple(t.shape) for n, t in var.items()}


def buffers(scales: Scales) -> dict[str, Tensor]:
    """The release's level table and mask, computed apart from the library."""
    level = np.concatenate([np.full(h * w, k) for k, (h, w) in enumerate(scales)])
    mask = np.where(level[:, None] >= level[None, :], 0.0, -np.inf).astype(np.float32)
    return {"lvl_1L": torch.from_numpy(level[None]), "attn_bias_for_masking": torch.from_numpy(mask[None, None])}


def filled(shapes: dict[str, tuple[int, ...]], scales: Scales, seed: int = CONFIG["seed"]) -> dict[str, Tensor]:
    """A state dict with weights by the rule of `fill`."""
    own, state = buffers(scales), {}
    for name, shape in shapes.items():
        values = fill.value(seed, name, shape)
        state[name] = own.get(name, torch.zeros(shape)) if values is None else torch.from_numpy(np.asarray(values))
    return state


@cache
def _states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    vae, var = shapes(TOKENIZER, TRANSFORMER)
    return filled(vae, SCALES), filled(var, SCALES)


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The small model as the release's two state dicts, to do with as one likes."""
    vae, var = ({name: tensor.clone() for name, tensor in state.items()} for state in _states())
    return vae, var


@cache
def pipeline() -> Pipeline:
    """The small model, in float32."""
    return official.load(*states(), precision="fp32")
