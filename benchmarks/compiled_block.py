"""One block of a transformer at its largest scale: plain, prepacked, and compiled with frozen weights.

    python benchmarks/compiled_block.py --preset var-d16

Two rows (one image with guidance), random weights, bfloat16, medians of 15. Says whether `torch.compile` would pay on
this machine for the one graph that matters most, and what its first call costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch._inductor.config
from torch import Tensor

from nextscale import Pipeline
from nextscale.transformer.layers import Modulation


def milliseconds(run: Callable[[], object]) -> float:
    """Median of 15, after one that does not count."""
    run()
    taken = []
    for _ in range(15):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return 1e3 * median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="var-d16")
    pipe = Pipeline.from_preset(parser.parse_args().preset, precision="bf16")
    config = pipe.transformer.config
    length, total = config.scales.lengths[-1], config.scales.total
    memory = torch.randn(2, 2, config.heads, total, config.head_dim).bfloat16()
    x = torch.randn(2, length, config.width).bfloat16()
    three = [0.1 * torch.randn(2, 1, config.width).bfloat16() for _ in range(3)]
    modulations = (Modulation(*three), Modulation(*three))

    def remember(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        memory[0, :, :, total - length :], memory[1, :, :, total - length :] = k, v
        return memory[0], memory[1]

    torch._inductor.config.freezing = True
    plain, packed = pipe.transformer.blocks[0], pipe.engine().transformer.blocks[0]
    compiled = torch.compile(plain, dynamic=False)
    with torch.inference_mode():
        print(f"plain     {milliseconds(lambda: plain(x, modulations, remember)):8.2f} ms")
        print(f"prepacked {milliseconds(lambda: packed(x, modulations, remember)):8.2f} ms")
        start = time.perf_counter()
        compiled(x, modulations, remember)
        first = time.perf_counter() - start
        print(f"compiled  {milliseconds(lambda: compiled(x, modulations, remember)):8.2f} ms, first call {first:.1f} s")


if __name__ == "__main__":
    main()
