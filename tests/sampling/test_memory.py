"""Laws of memory: the cache's size is computed exactly, and a budget splits a request without changing it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nextscale import InputError, Pipeline, presets
from nextscale.config import TransformerConfig
from nextscale.sampling.memory import decoding_bytes, image_bytes, sampling_bytes
from nextscale.transformer import VAR, KeyValueCache, cache_bytes


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computed_size_is_that_of_the_cache(
    transformer_config: TransformerConfig, guided: bool, dtype: torch.dtype
) -> None:
    """To the byte."""
    cache = KeyValueCache(transformer_config, 6 if guided else 3, dtype=dtype, device=torch.device("cpu"))
    assert cache_bytes(transformer_config, 3, guided=guided, dtype=dtype) == cache.memory.nbytes


def test_cache_of_the_large_model_is_as_documented() -> None:
    """VAR-d30 with guidance in bfloat16: 299 MiB an image; half of it without guidance."""
    config = presets.get("var-d30").transformer
    size = cache_bytes(config, 1, guided=True, dtype=torch.bfloat16)
    assert size == 313_344_000
    assert round(size / 2**20) == 299
    assert cache_bytes(config, 4, guided=False, dtype=torch.bfloat16) == 2 * size


def test_image_takes_the_larger_of_sampling_and_decoding() -> None:
    """Sampling for the large transformer, decoding for the small one; guidance and float32 cost more."""
    large, small = presets.get("var-d30"), presets.get("var-d16")
    guided = {"guided": True, "dtype": torch.bfloat16}
    assert image_bytes(large.tokenizer, large.transformer, **guided) == sampling_bytes(large.transformer, **guided)
    plain = {"guided": False, "dtype": torch.bfloat16}
    assert image_bytes(small.tokenizer, small.transformer, **plain) == decoding_bytes(small.tokenizer)
    assert sampling_bytes(large.transformer, guided=True, dtype=torch.float32) > sampling_bytes(
        large.transformer, **guided
    )


def test_no_cache_is_counted_where_each_scale_sees_itself() -> None:
    """And the logits of the scale before, the prior and the sum where there is guidance by it."""
    config, how = presets.get("var-d30").transformer, {"guided": True, "dtype": torch.bfloat16}
    whole, near, led = (sampling_bytes(config, **how, **more) for more in ({}, {"reach": 1}, {"step_guided": True}))  # type: ignore[arg-type]
    assert whole - near == cache_bytes(config, 1, **how)  # type: ignore[arg-type]
    assert led - whole == 3 * 256 * 4096 * 4
    assert sampling_bytes(config, **how, reach=2) == whole  # type: ignore[arg-type]


def test_decoder_holds_four_maps_of_its_last_level() -> None:
    """160 channels of 256x256 pixels, in float32."""
    assert decoding_bytes(presets.get("var-d16").tokenizer) == 4 * 160 * 256 * 256 * 4


@pytest.fixture
def batches(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every condition that is computed, as the test goes on."""
    seen: list[int] = []
    condition = VAR.condition

    def count(self: VAR, labels_B: torch.Tensor, prompts: None) -> Any:
        seen.append(len(labels_B))
        return condition(self, labels_B, prompts)

    monkeypatch.setattr(VAR, "condition", count)
    return seen


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 1), (1.5, 2)])
@pytest.mark.parametrize(("fit", "sizes"), [(1.0, [1] * 5), (2.9, [2, 2, 1]), (5.0, [5]), (100.0, [5])])
def test_request_is_split_into_batches_that_fit_the_budget(
    pipe: Pipeline, batches: list[int], guidance: float, rows: int, fit: float, sizes: list[int]
) -> None:
    """Identical tokens, images equal up to rounding, whatever the budget."""
    request: dict[str, Any] = {"labels": [3, 1, "bee", 5, 0], "seeds": [9, 8, 7, 6, 5], "guidance": guidance}
    whole = pipe.generate(**request)
    batches.clear()
    each = image_bytes(pipe.tokenizer.config, pipe.transformer.config, guided=guidance != 0, dtype=torch.float32)
    parts = pipe.generate(**request, memory=int(each * fit))
    assert batches == [size * rows for size in sizes]
    assert torch.equal(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.images, whole.images, atol=1e-5, rtol=0)


def test_budget_that_holds_no_image_is_refused(pipe: Pipeline) -> None:
    """With what one takes."""
    each = image_bytes(pipe.tokenizer.config, pipe.transformer.config, guided=True, dtype=torch.float32)
    with pytest.raises(InputError, match=f"^memory: expected at least {each} bytes, what one image takes, got 1000$"):
        pipe.generate([1], memory=1000)


def test_mistakes_anywhere_in_a_request_stop_it_before_it_starts(pipe: Pipeline, batches: list[int]) -> None:
    """A wrong label in the last batch costs no picture."""
    make: Callable[..., Any] = pipe.generate
    with pytest.raises(InputError, match="^label: expected"):
        make([1, 2, 3, 77], memory=10**6)
    assert not batches
