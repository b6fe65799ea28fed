"""Laws of the fast path: it gives what the models give, to a stated rounding, and follows their weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.sampling import engine
from nextscale.transformer import VAR, KeyValueCache
from nextscale.transformer.layers import SCORES, attend_in_parts

needs_packing = pytest.mark.skipif(
    not engine.packs_bf16(), reason="this processor, or this torch, does not multiply bfloat16 by packed weights"
)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the error, as a share of the expected values' own."""
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@torch.no_grad()
def logits_of(transformer: VAR, inputs: list[torch.Tensor | None], labels: list[int]) -> torch.Tensor:
    """Step by step along given inputs."""
    condition = transformer.condition(torch.tensor(labels))
    cache = KeyValueCache(transformer.config, len(labels), dtype=transformer.compute_dtype, device=torch.device("cpu"))
    return torch.cat([transformer.step(k, codes, condition, cache) for k, codes in enumerate(inputs)], dim=1)


def inputs_of(transformer: VAR, batch: int) -> list[torch.Tensor | None]:
    lengths, channels = transformer.config.scales.lengths, transformer.config.code_channels
    generator = torch.Generator().manual_seed(5)
    return [None, *(torch.randn(batch, length, channels, generator=generator) for length in lengths[1:])]


def test_in_float32_the_engine_is_the_models(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """The slow path is the oracle: nothing is converted."""
    tokenizer, transformer = make_tokenizer(), make_transformer()
    made = engine.make_engine(tokenizer, transformer, torch.float32)
    assert made.transformer is transformer
    assert made.decoder is tokenizer.decoder


@needs_packing
def test_packed_products_are_the_plain_ones(make_transformer: Callable) -> None:
    """Of the same bfloat16 weights: equal to the rounding of bfloat16, 2^-8, the head in bfloat16 included."""
    plain = make_transformer().lower_precision(torch.bfloat16)
    inputs, labels = inputs_of(plain, 4), [0, 1, 2, plain.config.classes]
    expected = logits_of(plain, inputs, labels)
    assert relative(logits_of(engine.packed(plain), inputs, labels), expected) < 0.015


@needs_packing
def test_packing_leaves_the_transformer_as_it_was(make_transformer: Callable) -> None:
    """Its weights stay plain, float32 head and all, and the view shares what is not packed."""
    plain = make_transformer().lower_precision(torch.bfloat16)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    view = engine.packed(plain)
    assert view.positions.data_ptr() == plain.positions.data_ptr()
    assert view.head.weight.is_mkldnn
    assert all(torch.equal(before[name], weight) for name, weight in plain.state_dict().items())
    assert all(weight.requires_grad and not weight.is_mkldnn for weight in plain.parameters())


def test_bfloat16_stays_near_the_oracle(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """Over eight inputs: logits within 3 % of float32's, pictures of the same tokens within 2 % of their range."""
    tokenizer, oracle = make_tokenizer(), make_transformer()
    fast = engine.make_engine(tokenizer, make_transformer().lower_precision(torch.bfloat16), torch.bfloat16)
    inputs, labels = inputs_of(oracle, 8), [index % oracle.config.classes for index in range(8)]
    assert relative(logits_of(fast.transformer, inputs, labels), logits_of(oracle, inputs, labels)) < 0.03
    canvas = torch.randn(8, tokenizer.config.code_channels, *tokenizer.config.scales.sizes[-1])
    with torch.no_grad():
        difference = (fast.paint(canvas) - tokenizer.paint(canvas)).abs()
    assert difference.mean() < 0.02 * 2


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_the_engine_follows_the_weights(make_tokenizer: Callable, make_transformer: Callable, how: str) -> None:
    """Of both models, after the first picture."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    before = pipe.generate([0], [0])
    head, last = pipe.transformer.head, pipe.tokenizer.decoder.head
    with torch.no_grad():
        for layer in (head, last):
            if how == "in place":
                layer.weight.neg_()
            else:
                layer.weight = torch.nn.Parameter(-layer.weight)
    after = pipe.generate([0], [0])
    assert not torch.equal(before.tokens, after.tokens)
    same_tokens = pipe.tokenizer.decode(after.tokens)
    torch.testing.assert_close(after.images * 2 - 1, same_tokens.detach(), atol=0.1, rtol=0)


def test_the_engine_is_made_once(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """As long as the weights stay."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    assert pipe.engine() is pipe.engine()


def test_a_saved_pipeline_knows_nothing_of_the_engine(
    make_tokenizer: Callable, make_transformer: Callable, tmp_path
) -> None:
    """The same files before the first picture and after it."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    pipe.save(tmp_path / "before")
    pipe.generate([0], [0])
    pipe.save(tmp_path / "after")
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


@pytest.mark.parametrize(
    ("batch", "heads", "length", "seen"), [(2, 3, 5, 9), (1, 4, 700, 1000), (3, 2, 1200, 1900), (2, 16, 256, 680)]
)
def test_attention_in_parts_is_attention(batch: int, heads: int, length: int, seen: int) -> None:
    """Whether all heads fit together, some of them, or not even one; scores of 4 or so are rounded by 2^-8."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(batch, heads, n, 16, generator=generator, dtype=torch.float32).bfloat16()
        for n in (length, seen, seen)
    )
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=1.0)
    assert relative(attend_in_parts(q, k, v).float(), expected) < 2**-6


def test_the_cases_of_attention_in_parts_differ() -> None:
    """The cases above meet all three ways through."""
    fits = [SCORES // (length * seen * 2) for length, seen in ((5, 9), (700, 1000), (1200, 1900), (256, 680))]
    assert fits[0] >= 6
    assert fits[1] in range(1, 4)
    assert fits[2] == 0
    assert fits[3] in range(1, 32)


def test_tokenizer_of_the_engine_is_the_models(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """The quantizer stays float32: which code is nearest must not depend on precision."""
    tokenizer: MultiScaleVQVAE = make_tokenizer()
    made = engine.make_engine(tokenizer, make_transformer().lower_precision(torch.bfloat16), torch.bfloat16)
    assert made.tokenizer is tokenizer
    assert made.tokenizer.post_quantizer.weight.dtype == torch.float32
    assert made.decoder.stem.weight.dtype == torch.bfloat16
    assert made.decoder.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"])
def test_a_pipeline_can_be_copied_after_a_picture(
    make_tokenizer: Callable, make_transformer: Callable, how: Callable[[Pipeline], Pipeline]
) -> None:
    """The copy makes an engine of its own."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    before = pipe.generate([0, 1], [0, 1])
    again = how(pipe)
    assert torch.equal(again.generate([0, 1], [0, 1]).tokens, before.tokens)


def test_a_pipeline_made_in_inference_mode_samples(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """Its weights count no writes; they cannot be written to outside of it either."""
    with torch.inference_mode():
        pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
        tokens = pipe.generate([0], [0]).tokens
    assert torch.equal(pipe.generate([0], [0]).tokens, tokens)
