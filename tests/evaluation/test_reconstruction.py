"""Laws of judging a tokenizer: exact figures where they are known, a slow obvious loop where they are not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale import MultiScaleVQVAE, Scales, images
from nextscale.data import Pictures
from nextscale.data.pictures import Split
from nextscale.errors import InputError
from nextscale.evaluation.card import ReconstructionCard
from nextscale.evaluation.reconstruction import (
    ReconstructionFigures,
    Source,
    entropy_bits,
    evaluate,
    ssim,
    tokenizer_fingerprint,
)
from nextscale.evaluation.statistics import RunningGaussian, frechet_distance
from nextscale.features import FeatureNetwork, PerceptualDistance


@pytest.fixture(scope="module")
def figures(tokenizer: MultiScaleVQVAE, split: Split, glance: FeatureNetwork) -> ReconstructionFigures:
    """Of the tokenizer with random weights."""
    return evaluate(tokenizer, split, glance, batch=24)


@pytest.fixture
def two_toned(make_tokenizer: Callable[..., MultiScaleVQVAE], monkeypatch: pytest.MonkeyPatch) -> MultiScaleVQVAE:
    """Knows white and black, which are codes 5 and 7 of the first scale; all others have nothing to add: code 0."""
    tokenizer = make_tokenizer(phi_sharing="none", phi_count=0)
    codes_VC = tokenizer.quantizer.codebook.weight.data.fill_(100.0)
    codes_VC[0], codes_VC[5], codes_VC[7] = 0.0, 1.0, -1.0

    def shade(x: Tensor, channels: int, height: int, width: int) -> Tensor:
        return x.mean(dim=(1, 2, 3)).sign().view(-1, 1, 1, 1).expand(-1, channels, height, width)

    monkeypatch.setattr(tokenizer, "features", lambda pictures: shade(pictures, 8, 4, 4))
    monkeypatch.setattr(tokenizer, "paint", lambda canvas: shade(canvas, 3, 8, 8))
    return tokenizer


def toned(whites: int, blacks: int) -> Tensor:
    """(N, 3, 8, 8) uint8."""
    return torch.tensor([255] * whites + [0] * blacks, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)


def flat(figures: ReconstructionFigures) -> dict[str, float]:
    """All numbers, by name."""
    values = figures.to_json()
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    for scale in values["scales"]:
        numbers |= {f"{scale['size']} {name}": value for name, value in scale.items() if name != "size"}
    return numbers


# ---- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whites", "blacks", "bits"), [(4, 4, 1.0), (6, 2, 2 - 0.75 * math.log2(3)), (5, 0, 0.0)], ids=str
)
def test_usage_is_what_the_pictures_say(
    two_toned: MultiScaleVQVAE,
    make_split: Callable[[Tensor], Split],
    glance: FeatureNetwork,
    whites: int,
    blacks: int,
    bits: float,
) -> None:
    """One bit for two tones that are equally frequent, in 1 of 30 tokens of 64 pixels; the finer scales say nothing."""
    figures = evaluate(two_toned, make_split(toned(whites, blacks)), glance, batch=3)
    first, *others = figures.scales
    assert (first.size, first.tokens, first.used) == ("1x1", 1, 2 if blacks else 1)
    assert first.possible == whites + blacks
    assert first.perplexity == pytest.approx(2**bits, rel=1e-12)
    assert [(scale.tokens, scale.used, scale.perplexity) for scale in others] == [(4, 1, 1), (9, 1, 1), (16, 1, 1)]
    assert others[-1].possible == 64
    assert figures.value("bits_per_pixel") == 30 * 6 / 64
    assert figures.value("entropy_bits_per_pixel") == pytest.approx(bits / 64, abs=1e-15)


def test_pictures_that_come_back_whole_have_no_distance(
    two_toned: MultiScaleVQVAE, make_split: Callable[[Tensor], Split], glance: FeatureNetwork
) -> None:
    """From the first scale on, which leaves nothing of the features."""
    figures = evaluate(two_toned, make_split(toned(4, 3)), glance)
    assert figures.value("ssim") == pytest.approx(1, abs=1e-12)
    assert figures.value("perceptual_distance") == 0
    assert figures.value("frechet_distance") == pytest.approx(0, abs=1e-10)
    kernel = figures.figures["kernel_distance"]
    assert (kernel.value, kernel.low, kernel.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert figures.value("psnr") > 100
    assert [scale.residual for scale in figures.scales] == pytest.approx([0] * 4, abs=1e-12)
    assert [scale.psnr for scale in figures.scales] == pytest.approx([figures.value("psnr")] * 4)


def test_ssim_of_flat_pictures_is_the_term_of_the_means() -> None:
    """(2 a b + c) / (a^2 + b^2 + c) with pixels in [0, 1] and c = 0.0001."""
    grey, light = torch.full((1, 3, 8, 8), 0.0), torch.full((1, 3, 8, 8), 0.5)
    expected = (2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4)
    assert ssim(grey, light).item() == pytest.approx(expected, rel=1e-12)
    assert ssim(light, light).item() == pytest.approx(1, abs=1e-11)


def test_ssim_is_each_picture_s_own(levels: Tensor) -> None:
    """(B,), symmetric, and lower the more noise there is."""
    clean = images.from_uint8(levels)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    grades = torch.stack([ssim(clean + amount * noise, clean) for amount in (0, 0.05, 0.2, 0.8)])
    assert grades.shape == (4, 24)
    assert grades.diff(dim=0).max() < 0
    pair = clean[:12], clean[12:]
    torch.testing.assert_close(ssim(*pair), ssim(*reversed(pair)))


def test_entropy_of_counts_is_in_bits() -> None:
    """Two of four, one of four, eight of eight."""
    counts = torch.tensor([[2, 2, 0, 0], [7, 0, 0, 0], [5, 5, 5, 5]])
    assert entropy_bits(counts).tolist() == [1.0, 0.0, 2.0]


# ---- the slow way ----------------------------------------------------------------------------------------------------


def test_figures_of_pictures_are_those_of_the_saved_pictures(
    tokenizer: MultiScaleVQVAE, levels: Tensor, figures: ReconstructionFigures
) -> None:
    """PSNR by numpy, one picture at a time, of 8-bit levels whose peak is 255."""
    with torch.no_grad():
        painted = images.to_uint8(tokenizer.decode(tokenizer.encode(images.from_uint8(levels))))
    errors = np.square(painted.numpy().astype(float) - levels.numpy().astype(float)).mean(axis=(1, 2, 3))
    expected = 10 * np.log10(255**2 / errors)
    np.testing.assert_allclose(figures.each.psnr, expected, rtol=1e-5)
    assert figures.value("psnr") == pytest.approx(expected.mean(), rel=1e-6)
    assert figures.scales[-1].psnr == pytest.approx(figures.value("psnr"), rel=1e-12)
    assert figures.value("ssim") == pytest.approx(
        ssim(images.from_uint8(painted), images.from_uint8(levels)).mean().item()
    )


def test_a_scale_is_judged_by_what_is_painted_up_to_it(
    tokenizer: MultiScaleVQVAE, levels: Tensor, figures: ReconstructionFigures
) -> None:
    """`decode(through=k)`, and the residual of the features after k scales."""
    originals = images.from_uint8(levels)
    with torch.no_grad():
        f_BCHW, tokens_BL = tokenizer.features(originals), tokenizer.encode(originals)
        canvases = list(tokenizer.quantizer.canvases(tokens_BL))
        for k, scale in enumerate(figures.scales):
            painted = images.from_uint8(images.to_uint8(tokenizer.decode(tokens_BL, through=k + 1)))
            errors = (painted - originals).square().mean(dim=(1, 2, 3))
            assert scale.psnr == pytest.approx((10 * (4 / errors).log10()).mean().item(), rel=1e-6)
            left = (f_BCHW - canvases[k]).square().sum() / f_BCHW.square().sum()
            assert scale.residual == pytest.approx(left.item(), rel=1e-5)
            codes = tokens_BL[:, tokenizer.config.scales.offsets[k] :][:, : scale.tokens]
            assert scale.used == len(codes.unique())


def test_frechet_distance_is_that_of_pictures_and_saved_reconstructions(
    tokenizer: MultiScaleVQVAE, levels: Tensor, glance: FeatureNetwork, figures: ReconstructionFigures
) -> None:
    """Under the network's name."""
    originals = images.from_uint8(levels)
    with torch.no_grad():
        painted = images.from_uint8(images.to_uint8(tokenizer.decode(tokenizer.encode(originals))))
    sets = RunningGaussian(7), RunningGaussian(7)
    for gathered, pictures in zip(sets, (originals, painted), strict=True):
        gathered.update(glance(pictures))
    expected = frechet_distance(*(gathered.gaussian() for gathered in sets))
    assert expected > 0.001
    assert figures.value("frechet_distance") == pytest.approx(expected, rel=1e-6)
    assert figures.figures["frechet_distance"].name == "FD-Glance"


# ---- what must not matter, what must ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 24, 100])
def test_figures_do_not_depend_on_the_batch(
    tokenizer: MultiScaleVQVAE, split: Split, glance: FeatureNetwork, figures: ReconstructionFigures, batch: int
) -> None:
    """To a millionth; the last batch may be smaller."""
    assert flat(evaluate(tokenizer, split, glance, batch=batch)) == pytest.approx(flat(figures), rel=1e-6, abs=1e-6)


def test_figures_do_not_depend_on_the_order(
    tokenizer: MultiScaleVQVAE,
    make_split: Callable[[Tensor], Split],
    levels: Tensor,
    glance: FeatureNetwork,
    figures: ReconstructionFigures,
) -> None:
    """But those of single pictures follow their pictures."""
    turned = evaluate(tokenizer, make_split(levels.flip(0)), glance, batch=7)
    assert flat(turned) == pytest.approx(flat(figures), rel=1e-6, abs=1e-6)
    for ours, theirs in zip(turned.each, figures.each, strict=True):
        torch.testing.assert_close(ours, theirs.flip(0), rtol=1e-5, atol=1e-6)


def test_judging_leaves_the_caller_s_state_alone(
    tokenizer: MultiScaleVQVAE, split: Split, glance: FeatureNetwork, untouched: Callable[[], Any]
) -> None:
    """Random numbers, gradients, threads; the tokenizer's weights and counts of hits."""
    before = tokenizer_fingerprint(tokenizer)
    with untouched():
        evaluate(tokenizer, split, glance)
    assert tokenizer_fingerprint(tokenizer) == before


def test_progress_is_told_after_each_batch(tokenizer: MultiScaleVQVAE, split: Split, glance: FeatureNetwork) -> None:
    """(done, total)."""
    told: list[tuple[int, int]] = []
    evaluate(tokenizer, split, glance, batch=10, progress=lambda done, total: told.append((done, total)))
    assert told == [(10, 24), (20, 24), (24, 24)]


def test_what_is_needed_to_repeat_it_is_there(tokenizer: MultiScaleVQVAE, split: Split, glance: FeatureNetwork) -> None:
    """As plain JSON, the figures of single pictures left out; the card comes back as it was."""
    source = Source(tokenizer="runs/tiny", data="smooth", split="train", left_out=2)
    perceptual = PerceptualDistance(glance, heads=[torch.arange(7.0)], side=None)
    figures = evaluate(tokenizer, split, glance, source=source, perceptual=perceptual, keep=20)
    values = json.loads(json.dumps(figures.to_json()))
    card = ReconstructionCard.from_json(values["card"])
    assert card == figures.card
    assert (card.tokenizer.name, card.tokenizer.fingerprint) == ("runs/tiny", tokenizer_fingerprint(tokenizer))
    assert (card.tokenizer.height, card.tokenizer.width, card.tokenizer.tokens, card.tokenizer.codes) == (8, 8, 30, 64)
    assert (card.reference.name, card.reference.fingerprint) == ("smooth, train split", split.fingerprint)
    assert (card.pictures, card.kept, card.left_out) == (24, 20, 2)
    assert (card.network.name, card.network.fingerprint, card.network.side) == ("Glance", glance.fingerprint, 8)
    assert (card.perceptual.name, card.perceptual.learned, card.perceptual.side) == ("Glance", True, None)
    assert card.perceptual.fingerprint == perceptual.fingerprint
    assert {"torch", "nextscale", "torchmetrics"} <= set(card.versions)
    block = "\n".join(card.lines())
    for part in (
        "24 of 8x8, smooth, train split",
        "runs/tiny",
        "30 tokens of 64 codes",
        "learned heads",
        "20 features",
    ):
        assert part in block
    assert values["frechet_name"] == "FD-Glance"
    assert values["psnr"] == values["figures"]["psnr"]["value"]
    assert "each" not in values


def test_mistakes_of_the_protocol_are_named(figures: ReconstructionFigures) -> None:
    """Training pictures, unreadable ones, few ones, those that are squeezed; and not where there are none."""
    wide, many = dataclasses.replace(figures.card.tokenizer, width=16), 50_000
    sound = dataclasses.replace(figures.card, reference=dataclasses.replace(figures.card.reference, pictures=many))
    assert sound.warnings() == []
    cases = [
        ({"split": "train"}, "there to train on"),
        ({"left_out": 3}, "3 pictures of the data cannot be read"),
        ({"tokenizer": wide}, "pictures of 8x16 are squeezed to 8x8"),
        ({"reference": figures.card.reference}, "made from 24 pictures, fewer than 50,000"),
    ]
    for change, told in cases:
        (line,) = dataclasses.replace(sound, **change).warnings()
        assert told in line


def test_fingerprint_changes_with_a_weight_and_with_the_architecture(
    make_tokenizer: Callable[..., MultiScaleVQVAE],
) -> None:
    """And with nothing else."""
    again, other = make_tokenizer(), make_tokenizer(distance="cosine")
    assert tokenizer_fingerprint(make_tokenizer()) == tokenizer_fingerprint(again)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(again)
    again.decoder.head.bias.data[0] += 1e-3
    assert tokenizer_fingerprint(make_tokenizer()) != tokenizer_fingerprint(again)


def test_few_pictures_are_warned_of(figures: ReconstructionFigures) -> None:
    """Below 50,000, and again where there are no more of them than features."""

    def told(pictures: int) -> list[str]:
        reference = dataclasses.replace(figures.card.reference, pictures=pictures)
        return dataclasses.replace(figures.card, reference=reference).warnings()

    (one,) = told(24)
    assert "FD-Glance is made from 24 pictures, fewer than 50,000" in one
    assert "as many" in one
    assert "7 pictures do not fill the 7 dimensions" in told(7)[1]
    assert "singular" in told(7)[1]
    assert len(told(8)) == 1
    assert told(50_000) == []


@pytest.mark.parametrize(("stage", "told"), [("features", "finite features"), ("paint", "finite pictures")])
def test_a_tokenizer_whose_numbers_are_not_finite_has_no_figures(
    two_toned: MultiScaleVQVAE,
    make_split: Callable[[Tensor], Split],
    glance: FeatureNetwork,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    told: str,
) -> None:
    """NaN painted is black, the best copy of a black picture; NaN encoded is some code, and decoded a picture."""
    sound = getattr(two_toned, stage)
    monkeypatch.setattr(two_toned, stage, lambda given: sound(given) * math.nan)
    with pytest.raises(InputError, match=f"expected {told} from the"):
        evaluate(two_toned, make_split(toned(0, 5)), glance)


def test_mistakes_are_told(
    tokenizer: MultiScaleVQVAE,
    make_tokenizer: Callable[..., MultiScaleVQVAE],
    make_split: Callable[[Tensor], Split],
    split: Split,
    levels: Tensor,
    glance: FeatureNetwork,
) -> None:
    """No pictures, no batch, pictures of another size, pictures smaller than half of SSIM's window."""
    small = make_tokenizer(scales=Scales([1, 2]))
    cases: list[tuple[MultiScaleVQVAE, Pictures, int, str]] = [
        (tokenizer, make_split(levels[:0]), 4, "at least one, got none"),
        (tokenizer, split, 0, "batch: expected at least 1, got 0"),
        (tokenizer, make_split(levels[..., :6]), 4, r"expected shape \(batch, 3, 8, 8\)"),
        (small, make_split(levels[..., :4, :4]), 4, "at least 6x6 pixels for SSIM, got 4x4"),
    ]
    for model, pictures, batch, told in cases:
        with pytest.raises(InputError, match=told):
            evaluate(model, pictures, glance, batch=batch)


def test_codes_that_are_too_many_are_counted_by_their_digits(
    make_tokenizer: Callable[..., MultiScaleVQVAE], split: Split, glance: FeatureNetwork
) -> None:
    """Both values of 40 bits at most; a perplexity that many codes are the bound of."""
    tokenizer = make_tokenizer(quantizer="bsq", bits=40)
    for scale in evaluate(tokenizer, split, glance, batch=24).scales:
        assert 40 <= scale.used <= scale.possible
        assert scale.possible == 80
        assert 1 <= scale.perplexity <= 2.0**40
