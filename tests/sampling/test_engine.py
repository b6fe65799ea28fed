"""Laws of the fast path: it gives what the models give, to a stated rounding, and follows their weights."""

from __future__ import annotations

import copy
import math
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nextscale import MultiScaleVQVAE, Pipeline
from nextscale.machine.int8 import Int8Convolution, multiplies_int8_fast
from nextscale.machine.precision import Arithmetic
from nextscale.sampling import engine
from nextscale.transformer import VAR, KeyValueCache
from nextscale.transformer.layers import SCORES, attend_in_parts

needs_packing = pytest.mark.skipif(
    not engine.packs_bf16(), reason="this processor, or this torch, does not multiply bfloat16 by packed weights"
)

needs_int8 = pytest.mark.skipif(
    not multiplies_int8_fast(torch.device("cpu")), reason="this processor has neither AMX nor AVX512-VNNI"
)
layouts = pytest.mark.parametrize("amx", [True, False], ids=["beside AMX", "without AMX"])


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
    made = engine.make_engine(tokenizer, transformer, Arithmetic(torch.float32))
    assert made.transformer is transformer
    assert made.decoder is tokenizer.decoder


@needs_packing
def test_packed_products_are_the_plain_ones(make_transformer: Callable) -> None:
    """Of the same bfloat16 weights: equal to the rounding of bfloat16, 2^-8, the head in bfloat16 included."""
    plain = make_transformer().lower_precision(torch.bfloat16)
    inputs, labels = inputs_of(plain, 4), [0, 1, 2, plain.config.classes]
    expected = logits_of(plain, inputs, labels)
    packed = engine.view_in(plain, torch.bfloat16)
    assert packed.head.weight.is_mkldnn
    assert relative(logits_of(packed, inputs, labels), expected) < 0.015


@needs_packing
def test_packing_leaves_the_transformer_as_it_was(make_transformer: Callable) -> None:
    """Its weights stay plain, float32 head and all, and the view shares what is not packed."""
    plain = make_transformer().lower_precision(torch.bfloat16)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    view = engine.view_in(plain, torch.bfloat16)
    assert view.positions.data_ptr() == plain.positions.data_ptr()
    assert view.head.weight.is_mkldnn
    assert all(torch.equal(before[name], weight) for name, weight in plain.state_dict().items())
    assert all(weight.requires_grad and not weight.is_mkldnn for weight in plain.parameters())


def test_bfloat16_stays_near_the_oracle(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """Over eight inputs: logits within 3 % of float32's, pictures of the same tokens within 2 % of their range."""
    tokenizer, oracle = make_tokenizer(), make_transformer()
    fast = engine.make_engine(tokenizer, make_transformer().lower_precision(torch.bfloat16), Arithmetic(torch.bfloat16))
    inputs, labels = inputs_of(oracle, 8), [index % oracle.config.classes for index in range(8)]
    assert relative(logits_of(fast.transformer, inputs, labels), logits_of(oracle, inputs, labels)) < 0.03
    canvas = torch.randn(8, tokenizer.config.code_channels, *tokenizer.config.scales.sizes[-1])
    with torch.no_grad():
        difference = (fast.paint(canvas) - tokenizer.paint(canvas)).abs()
    assert difference.mean() < 0.02 * 2


@needs_int8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_int8_stays_near_the_oracle(make_transformer: Callable, dtype: torch.dtype) -> None:
    """All its products at once: logits within 4 % of float32's, where bfloat16 alone is within 3."""
    oracle = make_transformer()
    inputs, labels = inputs_of(oracle, 8), [index % oracle.config.classes for index in range(8)]
    view = engine.view_in(oracle, dtype, int8=engine.INT8)
    expected = logits_of(oracle, inputs, labels)
    assert 0 < relative(logits_of(view, inputs, labels), expected) < 0.04


@needs_int8
@layouts
def test_int8_takes_the_layers_it_says(make_transformer: Callable, monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    """And leaves the transformer as it was, in float32 too, where nothing else is converted."""
    monkeypatch.setattr(engine, "multiplies_with_amx", lambda: amx)
    plain = make_transformer()
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    view = engine.view_in(plain, torch.float32, int8=engine.int8_layers())
    found = {name for name, layer in view.named_modules() if isinstance(layer, engine.Int8Linear)}
    ends = ["feed_forward.up"] if amx else ["attention.qkv", "attention.out", "feed_forward.up"]
    blocks = range(plain.config.depth)
    assert found == {f"blocks.{i}.{end}" for i in blocks for end in ends}
    assert view.positions.data_ptr() == plain.positions.data_ptr()
    assert not any(isinstance(layer, engine.Int8Linear) for layer in plain.modules())
    assert all(torch.equal(before[name], weight) for name, weight in plain.state_dict().items())


@needs_int8
@layouts
def test_in_int8_a_seed_decides_its_picture(
    make_tokenizer: Callable, make_transformer: Callable, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    """The same twice, alone and in a batch, and another than bfloat16's or float32's in the note that it carries."""
    monkeypatch.setattr(engine, "multiplies_with_amx", lambda: amx)
    monkeypatch.setattr(engine, "view_in", partial(in_float32, engine.view_in))
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="int8")
    together = pipe.generate([0, 1, 2], [5, 6, 7])
    assert together.requests[0].precision == "int8"
    assert torch.equal(pipe.repeat(together.requests[1]).tokens, together.tokens[1:2])
    for i in range(3):
        assert torch.equal(pipe.generate([i], [5 + i]).tokens, together.tokens[i : i + 1])


@needs_int8
def test_in_int8_large_pictures_are_decoded_as_before(
    make_tokenizer: Callable, make_transformer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 2 % of their range where convolutions are in int8, one at a time; the tokenizer's own decoder stays."""
    tokenizer = make_tokenizer()
    monkeypatch.setattr(engine, "multiplies_with_amx", lambda: False)
    monkeypatch.setattr(engine, "PIXELS", tokenizer.config.height * tokenizer.config.width)
    for dtype in (torch.bfloat16, torch.float32):
        made = engine.make_engine(tokenizer, make_transformer(), Arithmetic(dtype, int8=True))
        assert any(isinstance(layer, Int8Convolution) for layer in made.decoder.modules())
        assert not any(isinstance(layer, Int8Convolution) for layer in tokenizer.decoder.modules())
        canvas = torch.randn(3, tokenizer.config.code_channels, *tokenizer.config.scales.sizes[-1])
        with torch.inference_mode():
            painted = made.paint(canvas)
            assert torch.equal(made.paint(canvas[1:2]), painted[1:2])
            assert (painted - tokenizer.paint(canvas)).abs().mean() < 0.02 * 2


@needs_int8
def test_small_pictures_are_decoded_together(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """In what "auto" decodes in."""
    made = engine.make_engine(make_tokenizer(), make_transformer(), Arithmetic(torch.bfloat16, int8=True))
    assert not any(isinstance(layer, Int8Convolution) for layer in made.decoder.modules())


def in_float32(view_in: Callable, transformer: VAR, dtype: torch.dtype, **given: Any) -> VAR:
    """Whose other products do not depend on the batch to the eye."""
    return view_in(transformer, torch.float32, **given)


@needs_int8
@layouts
def test_in_int8_step_by_step_is_all_at_once(
    make_transformer: Callable, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    """The cache changes nothing but the last digits of what is rounded: no level for nearly all."""
    monkeypatch.setattr(engine, "multiplies_with_amx", lambda: amx)
    view = engine.view_in(make_transformer(), torch.float32, int8=engine.int8_layers())
    inputs, labels = inputs_of(view, 3), [0, 1, 2]
    with torch.no_grad():
        whole = view(torch.tensor(labels), torch.cat([part for part in inputs if part is not None], dim=1))
    assert relative(logits_of(view, inputs, labels), whole) < 0.004


def last_layers(pipe: Pipeline) -> list[torch.nn.Module]:
    """Of both models; what is drawn and what is painted depends on them."""
    return [pipe.transformer.head, pipe.tokenizer.decoder.head]


def learn(pipe: Pipeline) -> None:
    """A step of a fused optimizer, after which torch counts no write."""
    weights = [layer.weight for layer in last_layers(pipe)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    torch.optim.AdamW(weights, lr=0.1, fused=True).step()


def through_data(pipe: Pipeline) -> None:
    for layer in last_layers(pipe):
        layer.weight.data.neg_()


def counted(pipe: Pipeline) -> None:
    with torch.no_grad():
        for layer in last_layers(pipe):
            layer.weight.neg_()


def some_rows(pipe: Pipeline) -> None:
    for layer in last_layers(pipe):
        layer.weight.data[1 : 1 + -(-len(layer.weight) // 32)] += 1


def replaced(pipe: Pipeline) -> None:
    for layer in last_layers(pipe):
        layer.weight = torch.nn.Parameter(-layer.weight)


def refreshed(pipe: Pipeline) -> None:
    """Single values: what `refresh` is for."""
    for layer in last_layers(pipe):
        layer.weight.data.view(-1)[1] += 100
    pipe.refresh()


@pytest.mark.parametrize("change", [learn, through_data, counted, some_rows, replaced, refreshed])
def test_the_engine_follows_the_weights(make_tokenizer: Callable, make_transformer: Callable, change: Callable) -> None:
    """Of both models, after the first picture: what is sampled next is what a new pipeline samples."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    before = pipe.generate(range(5))
    change(pipe)
    new = Pipeline(pipe.tokenizer, pipe.transformer, precision="bf16")
    after, expected = pipe.generate(range(5)), new.generate(range(5))
    assert not torch.equal(before.tokens, expected.tokens)
    assert torch.equal(after.tokens, expected.tokens)
    assert torch.equal(after.images, expected.images)


@pytest.mark.parametrize("model", ["transformer", "tokenizer"])
def test_weights_made_in_inference_mode_are_followed(
    make_tokenizer: Callable, make_transformer: Callable, model: str
) -> None:
    """Torch counts no writes to them; in one model alone, the other staying as it is."""
    with torch.inference_mode():
        pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
        before = pipe.generate([0])
        (pipe.transformer if model == "transformer" else pipe.tokenizer.decoder).head.weight.neg_()
        after, expected = pipe.generate([0]), Pipeline(pipe.tokenizer, pipe.transformer, precision="bf16").generate([0])
    assert not torch.equal(before.images, expected.images)
    assert torch.equal(after.images, expected.images)


@pytest.mark.parametrize("shape", [(7,), (64,), (65,), (4, 6), (3, 4, 3, 3), (1, 9, 64), (4, 1, 1), (64, 1), (640, 64)])
def test_values_all_over_a_weight_are_looked_at(shape: tuple[int, ...]) -> None:
    """Its own, few, every value of a small one, and some of any run of a thirty-second of it, at its end too."""
    weight = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    seen = engine.sampled(weight).long()
    between = torch.cat([seen, torch.tensor([weight.numel()])]).diff()
    assert seen[0] == 0
    assert 0 < between.min() <= between.max() <= max(1, weight.numel() / 32)
    assert len(seen) <= 2 * engine.SAMPLES


@pytest.mark.parametrize("shape", [(3072, 1024), (1024, 4096), (512, 512, 3, 3), (384, 1536)])
def test_the_values_looked_at_are_of_many_columns(shape: tuple[int, ...]) -> None:
    """A step of a power of two would see one column of all."""
    weight = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    seen = engine.sampled(weight).long()
    assert len((seen % math.prod(shape[1:])).unique()) > engine.SAMPLES / 2


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(64, 640).T,
        torch.randn(64, 640)[:, :9],
    ],
    ids=["channels last", "transposed", "part of another"],
)
def test_a_weight_in_another_layout_is_looked_at(weight: torch.Tensor) -> None:
    """A change of all values changes all, or nearly all, that are looked at."""
    seen, before = engine.sampled(weight), engine.sampled(weight).clone()
    weight.neg_()
    assert (seen == -before).float().mean() >= weight.numel() / (weight.untyped_storage().nbytes() / 4)


def test_threads_share_one_engine(
    make_tokenizer: Callable, make_transformer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets it, made once for all, when they ask at the same time, after the weights have changed too."""
    pipe, made = Pipeline(make_tokenizer(), make_transformer(), precision="bf16"), []
    make = engine.make_engine

    def slowly(*models: Any) -> engine.Engine:
        made.append(models)
        time.sleep(0.02)
        return make(*models)

    monkeypatch.setattr(engine, "make_engine", slowly)
    for times in (1, 2):
        with ThreadPoolExecutor(8) as threads:
            got = list(threads.map(lambda _: pipe.engine(), range(16)))
        assert all(isinstance(one, engine.Engine) and one is got[0] for one in got)
        assert len(made) == times
        pipe.transformer.head.weight.data.neg_()


def test_the_engine_is_made_once(make_tokenizer: Callable, make_transformer: Callable) -> None:
    """As long as the weights stay."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    assert pipe.engine() is pipe.engine()


def test_what_the_engine_holds_no_copy_of_changes_the_fingerprint_alone(
    make_tokenizer: Callable, make_transformer: Callable
) -> None:
    """Encoder and codebook: each has its look, and the engine is not made anew; what it copied changes both."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    for part in (pipe.tokenizer.encoder, pipe.tokenizer.quantizer, pipe.tokenizer.post_quantizer):
        made, known = pipe.engine(), pipe.fingerprint
        next(part.parameters()).data.mul_(1.5)
        assert pipe.engine() is made
        assert pipe.fingerprint != known
        assert pipe.generate([0]).requests[0].model == pipe.fingerprint
    pipe.transformer.head.weight.data.neg_()
    assert pipe.engine() is not made
    assert pipe.fingerprint != known


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
    made = engine.make_engine(tokenizer, make_transformer().lower_precision(torch.bfloat16), Arithmetic(torch.bfloat16))
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
