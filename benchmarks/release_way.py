"""Sampling the way the public release does it, against `Pipeline.generate`, in one run.

    python benchmarks/release_way.py --preset var-d16 --batch 1 4 16 --repeats 5 --json release_way.json

The release's way: every block projects its modulation anew at every scale, keys and values are joined to a longer copy
at every scale, top-p sorts all V logits, weights are float32, and the decoder runs in float32's memory format. It is
timed as it is ("fp32") and with bfloat16 autocast around everything ("autocast"); ours in whatever precision "auto" is
here. Random weights, the same for all. The three follow one another in each repeat; ratios are medians over repeats.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.bench.sampling import seconds_of
from nextscale.transformer import VAR
from nextscale.transformer.layers import MAX_TEMPERATURE, Block


@torch.no_grad()
def paint(
    pipe: Pipeline, labels: list[int], *, guidance: float = 1.5, top_k: int = 900, top_p: float = 0.96, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [-1, 1] and tokens (B, L), of a float32 pipeline."""
    tokenizer: MultiScaleVQVAE = pipe.tokenizer
    transformer: VAR = pipe.transformer
    scales, batch = transformer.config.scales, len(labels)
    generator = torch.Generator(pipe.device).manual_seed(seed)
    rows = torch.tensor([*labels, *[transformer.config.classes] * batch], device=pipe.device)
    class_RD = transformer.class_embedding(rows)
    caches: list[list[Tensor]] = [[] for _ in transformer.blocks]
    canvas, tokens, codes_RlC = tokenizer.quantizer.blank(batch), [], None
    for k in range(len(scales)):
        logits_RlV = step(transformer, k, class_RD, codes_RlC, caches)
        t = guidance * k / max(len(scales) - 1, 1)
        logits_BlV = (1 + t) * logits_RlV[:batch] - t * logits_RlV[batch:]
        tokens.append(draw(logits_BlV, top_k, top_p, generator))
        codes_BChw = tokenizer.quantizer.lookup(tokens[-1].unflatten(1, scales.sizes[k]))
        canvas = canvas + tokenizer.quantizer.contribution(codes_BChw, k)
        if k + 1 < len(scales):
            codes_RlC = tokenizer.quantizer.pool(canvas, k + 1).flatten(2).transpose(1, 2).repeat(2, 1, 1)
    return tokenizer.paint(canvas), torch.cat(tokens, dim=1)


def step(transformer: VAR, k: int, class_RD: Tensor, codes_RlC: Tensor | None, caches: list[list[Tensor]]) -> Tensor:
    """Logits of scale k, (R, l, V); `caches` holds the keys and the values of each block and gains this scale's."""
    x_RlD = (
        class_RD[:, None] + transformer.start if codes_RlC is None else transformer.code_projection(codes_RlC.float())
    )
    x_RlD = x_RlD + transformer.positions[:, transformer.config.scales.slices()[k]] + transformer.levels.weight[k]
    shared = transformer.shared_modulation
    six = None if shared is None else shared(F.silu(class_RD)).unflatten(-1, (6, -1)).unsqueeze(1)
    for block, cache in zip(transformer.blocks, caches, strict=True):
        assert isinstance(block, Block)
        x_RlD = through(block, x_RlD, class_RD, six, cache)
    scale, shift = transformer.head_modulation(F.silu(class_RD)).unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
    with torch.autocast(x_RlD.device.type, enabled=False):
        return transformer.head(normalized(x_RlD.float()) * (1 + scale.float()) + shift.float())


def through(block: Block, x_RlD: Tensor, class_RD: Tensor, six: Tensor | None, cache: list[Tensor]) -> Tensor:
    first, second = block.modulations(class_RD, six)
    h = attention(block, normalized(x_RlD) * (1 + first.scale) + first.shift, cache)
    x_RlD = x_RlD + h * first.gate
    h = block.feed_forward.up(normalized(x_RlD) * (1 + second.scale) + second.shift)
    return x_RlD + block.feed_forward.down(F.gelu(h, approximate="tanh")) * second.gate


def attention(block: Block, x_RlD: Tensor, cache: list[Tensor]) -> Tensor:
    layer = block.attention
    bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
    qkv = F.linear(x_RlD, layer.qkv.weight, bias)
    q, k, v = qkv.unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    if layer.temperature is not None:
        q = F.normalize(q, dim=-1) * layer.temperature.clamp_max(MAX_TEMPERATURE).exp()
        k = F.normalize(k, dim=-1)
    new = [k.to(v.dtype), v]
    cache[:] = [torch.cat(pair, dim=2) for pair in zip(cache, new, strict=True)] if cache else new
    h = F.scaled_dot_product_attention(q.to(v.dtype), *cache, scale=layer.scale)
    return layer.out(h.transpose(1, 2).flatten(2))


def normalized(x_RlD: Tensor) -> Tensor:
    return F.layer_norm(x_RlD, x_RlD.shape[-1:], eps=1e-6)


def draw(logits_BlV: Tensor, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """Top-k by its threshold, top-p by a sort of everything, then multinomial: (B, l) int64."""
    least = logits_BlV.topk(min(top_k, logits_BlV.shape[-1]), dim=-1).values[..., -1:]
    logits_BlV = logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    ascending, order = logits_BlV.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    dropped[..., -1] = False
    logits_BlV = logits_BlV.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    drawn = torch.multinomial(logits_BlV.softmax(dim=-1).flatten(0, 1), 1, generator=generator)
    return drawn.view(logits_BlV.shape[:2])


def measure(ours: Pipeline, theirs: Pipeline, batch: int, repeats: int) -> dict[str, object]:
    """Medians of seconds per image of the three ways, and of theirs over ours."""
    labels = [i % ours.transformer.config.classes for i in range(batch)]

    def autocast() -> None:
        with torch.autocast(ours.device.type, dtype=torch.bfloat16):
            paint(theirs, labels)

    ways = {"ours": partial(ours.generate, labels), "fp32": partial(paint, theirs, labels), "autocast": autocast}
    for run in ways.values():
        run()
    repeated = [{name: seconds_of(run, ours.device) / batch for name, run in ways.items()} for _ in range(repeats)]
    return {
        "batch": batch,
        **{f"{name}_seconds_per_image": median(times[name] for times in repeated) for name in ways},
        **{
            f"{name}_over_ours": median(times[name] / times["ours"] for times in repeated)
            for name in ("fp32", "autocast")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="var-d16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ours = Pipeline.from_preset(options.preset, device=options.device)
    theirs = Pipeline.from_preset(options.preset, device=options.device, precision="fp32")
    rows = []
    print(f"{options.preset}, seconds per image, decoding included; median of {options.repeats}")
    print("batch     ours   release, fp32  (x ours)   release, autocast  (x ours)")
    for batch in options.batch:
        row = measure(ours, theirs, batch, options.repeats)
        print(
            f"{batch:<5}{row['ours_seconds_per_image']:9.3f}{row['fp32_seconds_per_image']:16.3f}"
            f"{row['fp32_over_ours']:10.2f}{row['autocast_seconds_per_image']:20.3f}{row['autocast_over_ours']:10.2f}",
            flush=True,
        )
        rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
