"""Laws of the cache: it holds what was put in, layer by layer, at its final size from the start."""

import pytest
import torch

from nextscale.config import TransformerConfig
from nextscale.transformer import KeyValueCache


def make(config: TransformerConfig, dtype: torch.dtype = torch.float32) -> KeyValueCache:
    return KeyValueCache(config, 2, dtype=dtype, device=torch.device("cpu"))


def test_cache_returns_all_that_was_put_in(transformer_config: TransformerConfig) -> None:
    """Scale after scale, each layer its own keys and values, in order."""
    cache = make(transformer_config)
    put: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {0: [], 1: [], 2: []}
    for tokens in transformer_config.scales.lengths:
        for layer, earlier in put.items():
            k, v = torch.rand(2, 2, 4, tokens, 16)
            earlier.append((k, v))
            keys, values = cache.extend(layer, k, v)
            assert torch.equal(keys, torch.cat([k for k, _ in earlier], dim=2))
            assert torch.equal(values, torch.cat([v for _, v in earlier], dim=2))
        cache.advance(tokens)
    assert cache.length == transformer_config.scales.total


@pytest.mark.parametrize("reach", [1, 2, 3, 9])
def test_cache_returns_the_scales_within_reach(transformer_config: TransformerConfig, reach: int) -> None:
    """The last so many; where that is the new one alone, nothing is kept."""
    cache = KeyValueCache(transformer_config, 2, dtype=torch.float32, device=torch.device("cpu"), reach=reach)
    earlier = []
    for tokens in transformer_config.scales.lengths:
        k, v = torch.rand(2, 2, 4, tokens, 16)
        earlier.append((k, v))
        keys, values = cache.extend(1, k, v)
        assert torch.equal(keys, torch.cat([k for k, _ in earlier[-reach:]], dim=2))
        assert torch.equal(values, torch.cat([v for _, v in earlier[-reach:]], dim=2))
        cache.advance(tokens)
    assert (cache.memory.nbytes == 0) == (reach == 1)


def test_the_first_rows_are_a_cache_of_their_own(transformer_config: TransformerConfig) -> None:
    """With what was stored so far, on the same memory."""
    cache = make(transformer_config)
    k, v = torch.rand(2, 2, 4, 5, 16)
    cache.extend(0, k, v)
    cache.advance(5)
    one = cache.first(1)
    keys, values = one.extend(0, k[:1], v[:1])
    assert torch.equal(keys, torch.cat([k[:1], k[:1]], dim=2))
    assert torch.equal(values, torch.cat([v[:1], v[:1]], dim=2))
    one.advance(5)
    assert (cache.length, one.length) == (5, 10)
    assert keys.untyped_storage().data_ptr() == cache.memory.untyped_storage().data_ptr()


def test_cache_never_moves_or_grows(transformer_config: TransformerConfig) -> None:
    """Its size is the documented one, and what it returns are views of that memory."""
    cache = make(transformer_config, torch.bfloat16)
    depth, rows, length, width = 3, 2, 30, 64
    assert cache.memory.nbytes == 2 * depth * rows * length * width * 2
    keys, values = cache.extend(1, torch.zeros(2, 4, 5, 16), torch.zeros(2, 4, 5, 16))
    for view in (keys, values):
        assert view.untyped_storage().data_ptr() == cache.memory.untyped_storage().data_ptr()
        assert view.dtype == torch.bfloat16


def test_scale_that_is_not_counted_is_written_over(transformer_config: TransformerConfig) -> None:
    """A step that failed half way can be taken again."""
    cache = make(transformer_config)
    cache.extend(0, torch.zeros(2, 4, 5, 16), torch.zeros(2, 4, 5, 16))
    keys, _ = cache.extend(0, torch.ones(2, 4, 5, 16), torch.ones(2, 4, 5, 16))
    assert torch.equal(keys, torch.ones(2, 4, 5, 16))


def test_more_tokens_than_there_is_room_for_are_an_error(transformer_config: TransformerConfig) -> None:
    """Even a single one, which would broadcast into no room at all."""
    cache = make(transformer_config)
    cache.advance(transformer_config.scales.total)
    with pytest.raises(AssertionError):
        cache.extend(0, torch.zeros(2, 4, 1, 16), torch.zeros(2, 4, 1, 16))
