"""What `test_tokens` starts in two processes: one cache; how many rows each of them encoded, in OUT/rank-RANK.txt."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import TOKENIZER
from data import noise
from torch import Tensor

from nextscale import MultiScaleVQVAE
from nextscale.data import encoding
from nextscale.machine import distributed


def main(out: Path) -> None:
    tokenizer, data, encoded = MultiScaleVQVAE(TOKENIZER, seed=3), noise.data_set(), 0

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        nonlocal encoded
        encoded += len(images)
        return tokenizer.encode(images)

    with distributed.joined(torch.device("cpu")):
        meta = noise.made_of(tokenizer, data)
        made = [encoding.write(out / "tokens", data, encode, meta, batch=4) for _ in range(2)]
        assert made == [3 * noise.TRAIN + noise.HELD_OUT, 0], "the second time it is finished, for all of them"
        (out / f"rank-{distributed.rank()}.txt").write_text(str(encoded))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
