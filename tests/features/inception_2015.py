"""Weights and pictures that a formula gives, the same on every machine, for comparing two Inception networks.

Nothing here knows either network. Integers are mixed as by splitmix64 (Steele et al. 2014), so that no library's random
numbers are needed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("inception_2015.json")
SIZES = ((299, 299), (256, 256), (64, 64), (512, 384), (31, 47))  # of the pictures, height and width


def uniform(name: str, *shape: int) -> np.ndarray:
    """float64 in [0, 1), the same for the same name and shape."""
    state = np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)).reshape(shape) / 2.0**53


def weights(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for these names and shapes with which activations neither die nor grow, and every tensor matters."""
    return {name: _drawn(name, tuple(tensor.shape)) for name, tensor in like.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    values = uniform(name, *shape)
    if len(shape) > 1:
        values = (values * 2 - 1) * (6 / np.prod(shape[1:])) ** 0.5
    elif name.endswith(("running_var", "bn.weight")):
        values = values + 0.5
    else:
        values = (values - 0.5) * 0.6
    return torch.from_numpy(values.astype(np.float32))


def pictures() -> list[Tensor]:
    """One (1, 3, height, width) uint8 of each of the sizes: smooth waves and noise, with black and white in them."""
    return [_picture(height, width) for height, width in SIZES]


def _picture(height: int, width: int) -> Tensor:
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    waves = np.stack([np.sin(7 * x + 5 * k * y) * np.cos(9 * y * x + k) for k in (1, 2, 3)])
    levels = 128 + 110 * waves + 60 * (uniform(f"{height}x{width}", 3, height, width) - 0.5)
    return torch.from_numpy(levels.clip(0, 255).astype(np.uint8))[None]


def some(values: Tensor) -> list[float]:
    """21 or 22 of the numbers, evenly spread, for a file of golden numbers."""
    flat = values.flatten()
    return [float(f"{flat[i]:.7g}") for i in range(0, len(flat), len(flat) // 21)][:22]


def golden() -> dict[str, dict[str, list[float]]]:
    """What torch-fidelity computed of each picture, by its size; see scripts/make_inception_golden.py."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
