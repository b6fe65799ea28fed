"""Laws of the operation counts: torch counts the same, and the published sizes cost what is documented."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from nextscale import MultiScaleVQVAE, Pipeline, Scales, presets
from nextscale.config import TransformerConfig
from nextscale.machine.flops import (
    Work,
    condition_work,
    decoder_convolutions,
    decoder_work,
    encoder_work,
    heaviest,
    painting_work,
    quantizer_work,
    scale_work,
    step_guidance_work,
)
from nextscale.sampling.step_guidance import StepGuidance
from nextscale.transformer import VAR, KeyValueCache

SHAPES: list[dict[str, Any]] = [{}, {"scales": Scales([1, (2, 1), (3, 2), (4, 6)])}, {"scales": Scales([(3, 4)])}]


def attention_flops(q: Any, k: Any, v: Any, *_: object, out_shape: object = None, **__: object) -> int:
    """Of the fused kernel on CPUs, which torch's counter does not know."""
    return sdpa_flop(q, k, v)


@contextmanager
def counted() -> Iterator[list[Work]]:
    """`with counted() as work: ...` leaves in `work` what torch counted."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    work: list[Work] = []
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={fused: attention_flops}) as counter:
        yield work
    convolutions = counter.get_flop_counts().get("Global", {}).get(torch.ops.aten.convolution, 0)
    work.append(Work(counter.get_total_flops() - convolutions, convolutions))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_count_of_the_transformer_is_torchs(
    make_transformer: Callable[..., VAR], shape: dict[str, Any], shared: bool, guided: bool
) -> None:
    """The class once, then scale by scale."""
    transformer = make_transformer(**shape, shared_modulation=shared)
    config, rows = transformer.config, 2 if guided else 1
    cache = KeyValueCache(config, rows, dtype=torch.float32, device=torch.device("cpu"))
    with counted() as work:
        condition = transformer.condition(torch.zeros(rows, dtype=torch.int64))
    assert work == [condition_work(config, guided=guided)]
    for k, tokens in enumerate(config.scales.lengths):
        with counted() as work:
            transformer.step(k, torch.zeros(rows, tokens, config.code_channels) if k else None, condition, cache)
        assert work == [scale_work(config, k, guided=guided)]


@pytest.mark.parametrize("reach", [1, 2, 9])
def test_count_of_a_shorter_reach_is_torchs(make_transformer: Callable[..., VAR], reach: int) -> None:
    """Fewer keys to look at."""
    transformer, labels = make_transformer(), torch.zeros(1, dtype=torch.int64)
    config = transformer.config
    cache = KeyValueCache(config, 1, dtype=torch.float32, device=labels.device, reach=reach)
    condition = transformer.condition(labels)
    for k, tokens in enumerate(config.scales.lengths):
        with counted() as work:
            transformer.step(k, torch.zeros(1, tokens, config.code_channels) if k else None, condition, cache)
        assert work == [scale_work(config, k, guided=False, reach=reach)]


def test_count_of_step_guidance_is_torchs(transformer_config: TransformerConfig) -> None:
    """A product of what enlarges and the logits before; nothing at the first scale."""
    scales = transformer_config.scales
    logits = [torch.zeros(1, tokens, transformer_config.logits) for tokens in scales.lengths]
    led_away, before = StepGuidance(scales, [1.0] * 4), StepGuidance(scales, [1.0] * 4)
    for k, each in enumerate(logits):
        before(k, each)  # makes what enlarges, which is kept for the next pictures
        with counted() as work:
            led_away(k, each)
        assert work == [step_guidance_work(transformer_config, k)]


def test_count_of_a_transformer_that_reads_is_torchs(text_pipe: Pipeline) -> None:
    """Of a prompt of all its places: the encoder and each block's keys and values once, then scale by scale."""
    transformer, labels = text_pipe.transformer, torch.zeros(1, dtype=torch.int64)
    config, cache = transformer.config, KeyValueCache(transformer.config, 1, dtype=torch.float32, device=labels.device)
    assert text_pipe.reader is not None
    prompts = text_pipe.reader.read(["a red heart"])
    with counted() as work:
        condition = transformer.condition(labels, prompts)
    assert work == [condition_work(config, guided=False)]
    for k, tokens in enumerate(config.scales.lengths):
        with counted() as work:
            transformer.step(k, torch.zeros(1, tokens, config.code_channels) if k else None, condition, cache)
        assert work == [scale_work(config, k, guided=False)]


@pytest.mark.parametrize(
    "shape", [*SHAPES, {"multipliers": (1, 2, 3), "residual_blocks": 2}, {"phi_count": 0}], ids=str
)
def test_count_of_the_tokenizer_is_torchs(
    make_tokenizer: Callable[..., MultiScaleVQVAE], shape: dict[str, Any]
) -> None:
    """Encoder, quantizer, one scale painted, and decoder."""
    tokenizer = make_tokenizer(**shape)
    config = tokenizer.config
    with counted() as work:
        features = tokenizer.features(torch.zeros(1, 3, config.height, config.width))
    assert work == [encoder_work(config)]
    with counted() as work:
        tokenizer.quantizer.encode(features)
    assert work == [quantizer_work(config)]
    with counted() as work:
        canvas = tokenizer.quantizer.contribution(torch.zeros(1, config.code_channels, *config.scales.sizes[0]), 0)
    assert work == [painting_work(config)]
    with counted() as work:
        tokenizer.paint(canvas)
    assert work == [decoder_work(config)]


def test_published_tokenizer_costs_what_is_documented() -> None:
    """Encoder 0.215, decoder 0.394 TFLOP a picture of 256 px, and exactly what torch counts for these shapes."""
    config = presets.get("var-d16").tokenizer
    assert encoder_work(config).total == 215_130_570_752
    assert decoder_work(config).total == 393_713_549_312
    tokenizer = MultiScaleVQVAE(config, seed=None)  # shapes alone
    with counted() as work:
        tokenizer.paint(torch.empty(1, 32, 16, 16, device="meta"))
    assert work == [decoder_work(config)]


def test_heaviest_convolution_is_at_full_resolution() -> None:
    """160 to 160 channels on 256x256 pixels; the last of all paints three colours."""
    shapes = decoder_convolutions(presets.get("var-d16").tokenizer)
    assert heaviest(shapes) == (160, 160, 3, 256, 256)
    assert shapes[-1] == (160, 3, 3, 256, 256)


def test_guidance_doubles_the_transformers_work() -> None:
    """And leaves the tokenizer's alone: the ten scales of VAR-d16 are 0.597 TFLOP an image."""
    config = presets.get("var-d16").transformer
    plain, guided = (sum(scale_work(config, k, guided=g).total for k in range(10)) for g in (False, True))
    assert guided == 2 * plain
    assert guided / 1e12 == pytest.approx(0.597, abs=0.001)
