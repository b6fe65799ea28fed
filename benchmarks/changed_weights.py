"""Whether a pipeline samples the weights it has now, however they were changed, and what looking at them costs.

    python benchmarks/changed_weights.py --preset emoji-32 --calls 20

A bfloat16 pipeline paints, the weights of its blocks and its decoder are changed in one of the ways below, and it
paints again: the tokens must be those of a pipeline made anew. Then the time of the look is set against that of a
picture. Ends with status 1 where old weights were sampled, or where the look takes 1 % of a picture's time or more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from nextscale import Pipeline, presets
from nextscale.sampling.engine import look

LABELS = [0, 1, 2, 3]


def optimizer(make: Callable[..., torch.optim.Optimizer]) -> Callable[[list[Tensor]], object]:
    """A step of it, as small as in training."""

    def step(weights: list[Tensor]) -> None:
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        make(weights).step()

    return step


def scaled(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.data.mul_(1.01)


def counted(weights: list[Tensor]) -> None:
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.01)


def in_inference_mode(weights: list[Tensor]) -> None:
    with torch.inference_mode():
        torch._foreach_mul_(weights, 1.01)


def some_rows(weights: list[Tensor]) -> None:
    weights[-1].data[: -(-len(weights[-1]) // 32)] += 1


WAYS: dict[str, Callable[[list[Tensor]], object]] = {
    "AdamW, fused": optimizer(lambda weights: torch.optim.AdamW(weights, lr=1e-4, fused=True)),
    "SGD, fused": optimizer(lambda weights: torch.optim.SGD(weights, lr=1e-4, fused=True)),
    "AdamW, foreach": optimizer(lambda weights: torch.optim.AdamW(weights, lr=1e-4, foreach=True)),
    "in place": counted,
    "through .data": scaled,
    "in inference mode": in_inference_mode,
    "1/32 of one weight, through .data": some_rows,
}


def main() -> None:
    """Every way, then the times."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", choices=presets.names(), default="emoji-32")
    options.add_argument("--calls", type=int, default=20, help="whose median counts")
    given = options.parse_args()
    pipe = Pipeline.from_preset(given.preset, precision="bf16")
    followed = [told(way, noticed(pipe, change)) for way, change in WAYS.items()]
    share = cost(pipe, given.calls)
    sys.exit(not all(followed) or share >= 0.01)


def told(way: str, right: bool) -> bool:
    print(f"{way:40} {'noticed' if right else 'NOT NOTICED'}")
    return right


def noticed(pipe: Pipeline, change: Callable[[list[Tensor]], object]) -> bool:
    """Whether a new engine is made; and, to be sure, whether the tokens are those of a new pipeline."""
    before = pipe.engine()
    change([*pipe.tokenizer.decoder.parameters(), *pipe.transformer.blocks.parameters(), pipe.transformer.head.weight])
    new = Pipeline(pipe.tokenizer, pipe.transformer, precision="bf16")
    return pipe.engine() is not before and torch.equal(pipe.generate(LABELS).tokens, new.generate(LABELS).tokens)


def cost(pipe: Pipeline, calls: int) -> float:
    """Prints the median times of a picture alone and of all looks at the weights; returns the share of the latter."""
    pipe.generate(0)
    picture = median(seconds(lambda: pipe.generate(0)) for _ in range(calls))
    looked = median(seconds(lambda: pipe.fingerprint) for _ in range(calls))  # known by now: looks are all it takes
    models = (pipe.tokenizer, pipe.transformer)
    total = sum(weight.numel() for model in models for weight in model.parameters())
    print(f"{len(look(models).bits):,} of {total:,} values looked at in {looked * 1e3:.2f} ms", end="; ")
    print(f"a picture takes {picture * 1e3:.1f} ms: {looked / picture:.2%}")
    return looked / picture


def seconds(run: Callable[[], object]) -> float:
    begun = perf_counter()
    run()
    return perf_counter() - begun


if __name__ == "__main__":
    main()
