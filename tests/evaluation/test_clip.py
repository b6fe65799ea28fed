"""Laws of the CLIP score, by a CLIP of random weights: it is what the transformers library's own model says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextscale.errors import InputError
from nextscale.evaluation import clip
from nextscale.evaluation.alignment import Question
from nextscale.evaluation.clip import Clip

transformers = pytest.importorskip("transformers")

PROMPTS = ["a red heart", "a cat face, noto", "a cat " * 40]  # the last is longer than what is read


def make(directory: Path) -> None:
    """A CLIP that sees 16 pixels a side and reads 12 pieces, and its tokenizer."""
    from text.test_frozen import SMALL
    from text.test_frozen import make as encoder

    encoder(directory)  # for its tokenizer; the weights are replaced
    text = {"hidden_size": 12, "max_position_embeddings": 12, "eos_token_id": 1, **SMALL}
    vision = {"hidden_size": 8, "image_size": 16, "patch_size": 8, **{k: v for k, v in SMALL.items() if k[0] != "v"}}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        transformers.CLIPModel(config).save_pretrained(directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clip")
    make(directory)
    return directory


@pytest.fixture(scope="module")
def small(source: Path) -> Clip:
    return Clip(str(source))


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_scores_are_those_of_the_library(small: Clip, source: Path) -> None:
    """Of pictures of CLIP's own size, its cosines, in hundredths and never below 0; nothing depends on the batch."""
    images = pictures(3, 3, 16, 16)
    model = transformers.CLIPModel.from_pretrained(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    given = tokenizer(PROMPTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    pixels = ((images + 1) / 2 - torch.tensor(clip.MEAN).view(3, 1, 1)) / torch.tensor(clip.DEVIATION).view(3, 1, 1)
    with torch.no_grad():
        told = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=pixels)
    cosines = (told.image_embeds * told.text_embeds).sum(dim=1)
    ours = clip.scores(small.pictures(images), small.prompts(PROMPTS))
    torch.testing.assert_close(ours, 100 * cosines.double().clamp_min(0), atol=1e-4, rtol=0)
    alone = torch.cat([small.pictures(images[place : place + 1]) for place in range(3)])
    torch.testing.assert_close(alone, small.pictures(images), atol=1e-5, rtol=0)


def test_a_score_is_the_cosine_in_hundredths() -> None:
    """Of embeddings of any length; one that points away is 0."""
    pictures_BE, prompts_BE = torch.tensor([[2.0, 0], [0, 3], [-1, 0]]), torch.tensor([[5.0, 0], [1, 1], [1, 0]])
    expected = torch.tensor([100, 50 * 2**0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(clip.scores(pictures_BE, prompts_BE), expected)


def test_wide_pictures_are_cropped_and_large_ones_are_shrunk(small: Clip) -> None:
    """What is beside the middle square changes nothing."""
    wide = pictures(1, 3, 16, 32)
    assert torch.equal(small.pictures(wide), small.pictures(wide[..., 8:24]))
    assert small.pictures(pictures(2, 3, 40, 40)).shape == (2, 6)


def test_a_model_stands_between_real_pictures_and_other_prompts() -> None:
    """Real pictures that lie where their prompts do have 100; others' pictures have what chance gives."""
    asked = [
        Question(kind="seen", train=True, index=place, subject=str(place), label=0, styled=str(place))
        for place in range(4)
    ]
    prompts_QE = torch.eye(4)
    painted_QE = prompts_QE + 1
    rows = {row.whose: row for row in clip.judge(asked, painted_QE, prompts_QE, prompts_QE)}
    means = [rows[whose].figures["clip_score"].value for whose in ("real pictures", "the model", "other prompts")]
    assert means == pytest.approx([100, 200 / 7**0.5, 100 / 7**0.5])
    assert all(row.prompts == 4 for row in rows.values())


def test_what_is_no_clip_is_told(tmp_path: Path) -> None:
    """In a line: another encoder, and nothing at all."""
    from text.test_frozen import make as encoder

    encoder(tmp_path)
    with pytest.raises(InputError, match="CLIP .*: expected one .* got: a model of type bert instead of clip$"):
        Clip(str(tmp_path))
    with pytest.raises(InputError, match="CLIP nowhere: expected one of the transformers library"):
        Clip("nowhere")
