"""What `precision="int8"` gains and costs, beside the precision that "auto" takes here, in one run.

    python benchmarks/int8.py --preset var-d16 --batch 1 4 --repeats 5 --json int8.json
    python benchmarks/int8.py --model runs/demo --count 72

The first times `Pipeline.generate`, decoding included, of random weights: the two follow one another in each repeat,
ratios are medians over repeats, of seconds on the clock and of processor time, which other programs disturb less.
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 before it shows a processor without AMX. The second samples with float32 and tells,
for either precision, how far the logits of the same inputs are from float32's (root mean square over their own spread,
and Kullback-Leibler divergence in nats), how near the pictures of the same tokens are, and how many of the tokens that
it samples by itself from the same seeds are float32's. Of text models the pictures are without text.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nextscale import Pipeline
from nextscale.machine.precision import SamplingPrecision
from nextscale.transformer import VAR, KeyValueCache

PRECISIONS: tuple[SamplingPrecision, ...] = ("auto", "int8")


def measure(pipes: dict[str, Pipeline], batch: int, repeats: int) -> dict[str, Any]:
    """Seconds an image of each, and the first's over the second's."""
    labels = [i % len(pipes["int8"].classes) for i in range(batch)]
    for pipe in pipes.values():
        pipe.generate(labels)
    rounds = [{name: _taken(pipe, labels) for name, pipe in pipes.items()} for _ in range(repeats)]
    row: dict[str, Any] = {"batch": batch, "repeats": repeats}
    for place, clock in enumerate(("seconds", "processor_seconds")):
        for name in pipes:
            row[f"{name}_{clock}_per_image"] = median(times[name][place] for times in rounds) / batch
        row[f"{clock}_ratio"] = median(times["auto"][place] / times["int8"][place] for times in rounds)
    return row


def _taken(pipe: Pipeline, labels: list[int]) -> tuple[float, float]:
    started, worked = time.perf_counter(), time.process_time()
    pipe.generate(labels)
    return time.perf_counter() - started, time.process_time() - worked


@torch.no_grad()
def compare(load: Callable[[SamplingPrecision], Pipeline], count: int) -> dict[str, dict[str, float]]:
    """What each precision changes of float32, over so many pictures of all classes in turn."""
    exact = load("fp32")
    labels = [i % len(exact.classes) for i in range(count)]
    painted = exact.generate(labels)
    *_, canvas = exact.tokenizer.quantizer.canvases(painted.tokens)
    expected = logits_of(exact.transformer, exact, labels, painted.tokens)
    found = {}
    for precision in PRECISIONS:
        pipe = load(precision)
        logits = logits_of(pipe.engine().transformer, exact, labels, painted.tokens)
        found[precision] = {
            "logits_error": float((logits - expected).square().mean().sqrt() / expected.std(dim=-1).mean()),
            "divergence": float(divergence(expected, logits)),
            "same_likeliest": float((logits.argmax(-1) == expected.argmax(-1)).float().mean()),
            "psnr_of_same_tokens": float(-10 * (pipe.show(canvas) - painted.images).square().mean().log10()),
            "same_tokens": float((pipe.generate(labels).tokens == painted.tokens).float().mean()),
        }
    return found


def divergence(expected_BLV: Tensor, logits_BLV: Tensor) -> Tensor:
    """KL(expected | logits), the mean over tokens, in nats."""
    log_p, log_q = expected_BLV.log_softmax(-1), logits_BLV.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def logits_of(transformer: VAR, pipe: Pipeline, labels: list[int], tokens_BL: Tensor) -> Tensor:
    """Step by step along given tokens, (B, L, V)."""
    inputs_BLC, scales = pipe.tokenizer.teacher_inputs(tokens_BL), transformer.config.scales
    condition = transformer.condition(torch.tensor(labels))
    dtype, device = transformer.compute_dtype, tokens_BL.device
    cache = KeyValueCache(transformer.config, len(labels), dtype=dtype, device=device)
    seen = [None, *inputs_BLC.split(scales.lengths[1:], dim=1)]
    return torch.cat([transformer.step(k, codes, condition, cache) for k, codes in enumerate(seen)], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="var-d16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, help="compare pictures of this model instead of timing a preset")
    parser.add_argument("--count", type=int, default=72)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    if options.model:
        told: Any = compare(lambda precision: Pipeline.load(options.model, precision=precision), options.count)
        for precision, figures in told.items():
            print(precision, "  ".join(f"{name} {value:.5g}" for name, value in figures.items()))
    else:
        plain = Pipeline.from_preset(options.preset)
        pipes = {name: Pipeline(plain.tokenizer, plain.transformer, precision=name) for name in PRECISIONS}
        told = []
        for batch in options.batch:
            told.append(measure(pipes, batch, options.repeats))
            print("  ".join(f"{name} {value:.3f}" for name, value in told[-1].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
