"""Laws of the tokenizer's doors: there and back, scale by scale, refusals, files that hold exactly what was saved."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale import InputError, MultiScaleVQVAE, Scales
from nextscale.config import TokenizerConfig
from nextscale.tokenizer import model

Make = Callable[..., MultiScaleVQVAE]


@torch.no_grad()
def test_decoding_through_every_scale_is_decoding(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """And each `through=k` paints exactly the first k canvases."""
    tokens = tokenizer.encode(images)
    shown = [tokenizer.decode(tokens, through=k) for k in (1, 2, 3, 4)]
    assert torch.equal(shown[-1], tokenizer.decode(tokens))
    for picture, canvas in zip(shown, tokenizer.quantizer.canvases(tokens), strict=True):
        assert torch.equal(picture, tokenizer.paint(canvas))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(shown))


@torch.no_grad()
def test_picture_so_far_does_not_depend_on_finer_tokens(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """`through=2` is the same whatever the tokens of scales 3 and 4 are."""
    tokens = tokenizer.encode(images)
    others = tokens.clone()
    others[:, 5:] = (others[:, 5:] + 1) % 64
    assert torch.equal(tokenizer.decode(tokens, through=2), tokenizer.decode(others, through=2))
    assert not torch.equal(tokenizer.decode(tokens), tokenizer.decode(others))


@torch.no_grad()
def test_tokens_and_pictures_do_not_depend_on_the_batch(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """One picture alone gives the tokens it has among others, and its reconstruction."""
    together = tokenizer.encode(images)
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(together, alone)
    torch.testing.assert_close(
        tokenizer.decode(together), torch.cat([tokenizer.decode(row[None]) for row in alone]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("scales", [Scales([1, (2, 3), (4, 6)]), Scales([(2, 2), 4]), Scales([(3, 2)])], ids=str)
@torch.no_grad()
def test_rectangles_and_single_scales_go_there_and_back(make_tokenizer: Make, scales: Scales) -> None:
    """Shapes and dtypes at every door."""
    tokenizer = make_tokenizer(scales=scales)
    images = torch.rand(2, 3, 2 * scales.height, 2 * scales.width) * 2 - 1
    tokens = tokenizer.encode(images)
    assert (tokens.shape, tokens.dtype) == ((2, scales.total), torch.int64)
    assert tokenizer.decode(tokens).shape == images.shape
    inputs = tokenizer.teacher_inputs(tokens)
    assert (inputs.shape, inputs.dtype) == ((2, scales.total - scales.lengths[0], 8), torch.float32)


@torch.no_grad()
def test_decoded_pictures_stay_in_range(make_tokenizer: Make, random_tokens: Callable[..., Tensor]) -> None:
    """Even when the decoder is far outside: clamped to [-1, 1], reached on both sides."""
    tokenizer = make_tokenizer()
    tokenizer.decoder.head.weight.mul_(100)
    pictures = tokenizer.decode(random_tokens())
    assert pictures.dtype == torch.float32
    assert (float(pictures.min()), float(pictures.max())) == (-1.0, 1.0)


def test_quantize_is_the_way_through_encode_and_decode(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """The training forward paints what `decode(encode(x))` shows, and its loss reaches the encoder and the codes."""
    quantized = tokenizer.quantize(tokenizer.features(images))
    assert torch.equal(quantized.tokens, tokenizer.encode(images))
    torch.testing.assert_close(tokenizer.paint(quantized.f_hat), tokenizer.decode(quantized.tokens), atol=1e-4, rtol=0)
    weights = [tokenizer.encoder.stem.weight, tokenizer.quantizer.codebook.weight]
    assert all(grad.abs().max() > 0 for grad in torch.autograd.grad(quantized.loss, weights))


def test_loss_of_quantize_is_codebook_plus_beta_times_commitment(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """Both have the same value, the mean over scales of |f_hat_k - f|^2, so beta only scales: 0.25 unless told."""
    f = tokenizer.features(images).detach()
    canvases = tokenizer.quantizer.canvases(tokenizer.encode(images))
    plain = sum(float((canvas - f).square().mean().detach()) for canvas in canvases) / 4
    assert tokenizer.quantize(f).loss.item() == pytest.approx(1.25 * plain, rel=1e-5)
    assert tokenizer.quantize(f, beta=2.0).loss.item() == pytest.approx(3 * plain, rel=1e-5)


def test_beta_moves_the_features_and_not_the_codes(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """The gradient to f is in proportion to it; that to the codebook does not depend on it."""
    f = tokenizer.features(images).detach().requires_grad_()
    codes = tokenizer.quantizer.codebook.weight
    to_f, to_codes = torch.autograd.grad(tokenizer.quantize(f, beta=1.0).loss, [f, codes])
    to_f_2, to_codes_2 = torch.autograd.grad(tokenizer.quantize(f, beta=2.0).loss, [f, codes])
    torch.testing.assert_close(to_f_2, 2 * to_f)
    torch.testing.assert_close(to_codes_2, to_codes)
    assert min(to_f.abs().max(), to_codes.abs().max()) > 0


@pytest.mark.parametrize(
    "images",
    [
        *(torch.zeros(shape) for shape in [(1, 3, 8, 9), (1, 3, 16, 16), (1, 1, 8, 8), (3, 8, 8)]),
        torch.ones(1, 3, 8, 8).byte(),
    ],
    ids=lambda images: f"{tuple(images.shape)} {images.dtype}",
)
def test_pictures_of_another_size_or_kind_are_refused(tokenizer: MultiScaleVQVAE, images: torch.Tensor) -> None:
    """With the size that fits, and the range."""
    with pytest.raises(InputError, match=r"^images: expected shape \(batch, 3, 8, 8\), float in \[-1, 1\], got "):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (torch.zeros(1, 29, dtype=torch.int64), r"expected shape \(batch, 30\) int64, got \(1, 29\)"),
        (torch.zeros(30, dtype=torch.int64), r"expected shape \(batch, 30\) int64"),
        (torch.zeros(1, 30), r"got \(1, 30\) torch.float32"),
        (torch.full((1, 30), 64), r"expected values in 0 .. 63, got 64 .. 64"),
        (torch.full((1, 30), -1), r"expected values in 0 .. 63, got -1 .. -1"),
    ],
)
def test_tokens_that_are_none_are_refused(tokenizer: MultiScaleVQVAE, tokens: Tensor, complaint: str) -> None:
    """By both doors that take them."""
    for door in (tokenizer.decode, tokenizer.teacher_inputs):
        with pytest.raises(InputError, match=complaint):
            door(tokens)


@pytest.mark.parametrize("through", [0, 5, -1])
def test_through_counts_scales_from_one(
    tokenizer: MultiScaleVQVAE, random_tokens: Callable[..., Tensor], through: int
) -> None:
    """Zero scales paint nothing and are refused, as are more than there are."""
    with pytest.raises(InputError, match=rf"^through: expected 1 .. 4 scales, got {through}$"):
        tokenizer.decode(random_tokens(), through=through)


def test_weights_follow_the_seed(make_tokenizer: Make, untouched: Callable[[], Any]) -> None:
    """Same seed, same weights; another seed, others; 0 unless told; torch's own state is not asked."""
    config = make_tokenizer().config
    with untouched():
        first, other = (MultiScaleVQVAE(config, seed=seed).state_dict() for seed in (0, 1))
        again = MultiScaleVQVAE(config).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.stem.weight"], other["encoder.stem.weight"])
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())


def test_initial_weights_are_what_they_are_said_to_be(make_tokenizer: Make) -> None:
    """Convolutions uniform up to 1/sqrt(fan-in), gains 1, biases 0; code lengths log-uniform over 1/20 .. 1."""
    tokenizer = make_tokenizer(codebook_size=4096, code_channels=32)
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.95 * bound < module.weight.abs().max() <= bound * (1 + 1e-6)
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        if isinstance(module, torch.nn.GroupNorm):
            assert (module.weight == 1).all()
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            assert module.bias is not None
            assert not module.bias.any()
    codes = tokenizer.quantizer.codebook.weight.detach()
    lengths = codes.norm(dim=1).log()
    assert lengths.mean().item() == pytest.approx(-math.log(20) / 2, abs=0.1)
    assert lengths.std().item() == pytest.approx(math.log(20) / math.sqrt(12), rel=0.05)
    assert codes.sum(dim=0).abs().max() < 5 * codes.square().sum(dim=0).max().sqrt()
    assert not tokenizer.quantizer.hits_KV.any()


def test_initial_codes_are_spread_over_a_factor_of_twenty(make_tokenizer: Make) -> None:
    """The variance of their log-lengths is that of a uniform law, log(20)^2 / 12, and of a normal vector's length."""
    codes = make_tokenizer(codebook_size=2**16, code_channels=32).quantizer.codebook.weight.detach()
    of_length = float(torch.special.polygamma(1, torch.tensor(32 / 2))) / 4
    expected = math.log(20) ** 2 / 12 + of_length
    assert codes.norm(dim=1).log().var().item() == pytest.approx(expected, rel=0.01)


def test_saved_tokenizer_is_loaded_bit_for_bit(
    make_tokenizer: Make, images: Tensor, tmp_path: Path, untouched: Callable[[], Any]
) -> None:
    """Config, every tensor with its dtype, the hits, and what it does; it can be trained on."""
    tokenizer = make_tokenizer(distance="cosine", phi_sharing="none", scales=Scales([1, 2, 3, 4]))
    tokenizer.quantizer.count_hits(tokenizer.encode(images), 0)
    tokenizer.save(tmp_path)
    with untouched():
        loaded = MultiScaleVQVAE.load(tmp_path)
    assert loaded.config == tokenizer.config
    assert list(loaded.state_dict()) == list(tokenizer.state_dict())
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_no_weights_are_drawn_that_a_file_replaces(
    make_tokenizer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model that would take longer than to read it."""
    make_tokenizer().save(tmp_path)
    monkeypatch.setattr(model, "initialize", lambda *_: pytest.fail("weights were drawn"))
    MultiScaleVQVAE.load(tmp_path)


def test_one_code_channel_is_enough(make_tokenizer: Make, images: Tensor) -> None:
    """Codes are numbers then, and what goes through them is finite."""
    tokenizer = make_tokenizer(code_channels=1)
    with torch.no_grad():
        assert tokenizer.decode(tokenizer.encode(images)).isfinite().all()


def test_what_is_done_to_a_loaded_tokenizer_stays_out_of_its_file(make_tokenizer: Make, tmp_path: Path) -> None:
    """Weights are mapped from the file but never written back to it."""
    make_tokenizer().save(tmp_path)
    loaded = MultiScaleVQVAE.load(tmp_path)
    before = loaded.encoder.stem.weight.detach().clone()
    with torch.no_grad():
        loaded.encoder.stem.weight.fill_(9.0)
    assert torch.equal(MultiScaleVQVAE.load(tmp_path).encoder.stem.weight, before)


def test_tokenizer_can_be_saved_over_the_files_it_came_from(make_tokenizer: Make, tmp_path: Path) -> None:
    """Although they are still mapped; an older load keeps what it had."""
    make_tokenizer().save(tmp_path)
    old, loaded = MultiScaleVQVAE.load(tmp_path), MultiScaleVQVAE.load(tmp_path)
    before = old.decoder.head.weight.detach().clone()
    with torch.no_grad():
        loaded.decoder.head.weight.add_(1.0)
    loaded.save(tmp_path)
    assert torch.equal(MultiScaleVQVAE.load(tmp_path).decoder.head.weight, before + 1)
    assert torch.equal(old.decoder.head.weight, before)


def test_config_and_weights_that_contradict_each_other_are_refused(make_tokenizer: Make, tmp_path: Path) -> None:
    """The tensor is named, with both shapes."""
    make_tokenizer().save(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["tokenizer"]["codebook_size"] = 32
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"quantizer.codebook.weight should be \(32, 8\), is \(64, 8\)"):
        MultiScaleVQVAE.load(tmp_path)


def test_any_integer_is_a_seed(tokenizer_config: TokenizerConfig) -> None:
    """Beyond 64 bits and below 0, too: modulo 2^63; these four are different."""
    seeds = (-1, 2**63 - 1, 2**64 + 5, 5, 131, 10**30)
    stems = [MultiScaleVQVAE(tokenizer_config, seed=seed).encoder.stem.weight for seed in seeds]
    assert torch.equal(stems[0], stems[1])
    assert torch.equal(stems[2], stems[3])
    assert len(torch.stack(stems).flatten(1).unique(dim=0)) == 4


def test_weights_do_not_depend_on_torchs_defaults(tokenizer_config: TokenizerConfig) -> None:
    """Neither on its default dtype nor on its default device."""
    expected = MultiScaleVQVAE(tokenizer_config, seed=4).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            seen = MultiScaleVQVAE(tokenizer_config, seed=4).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_pictures_in_other_forms_are_the_same_pictures(tokenizer: MultiScaleVQVAE) -> None:
    """Arrays with their channels last, Pillow images, one or several."""
    array = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    floats = torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1
    expected = tokenizer.encode(floats)
    assert torch.equal(tokenizer.encode(array), expected)
    assert torch.equal(tokenizer.encode([Image.fromarray(each) for each in array]), expected)
    assert torch.equal(tokenizer.encode(floats.double()), expected)
    shapes = MultiScaleVQVAE(tokenizer.config, seed=None).encode(array)
    assert (shapes.shape, shapes.is_meta) == ((2, 30), True)


@torch.no_grad()
def test_a_rectangle_is_as_high_and_as_wide_as_its_scales_say(make_tokenizer: Make) -> None:
    """By the door of arrays too, and in what is said of others."""
    tokenizer = make_tokenizer(scales=Scales([1, (4, 6)]))
    assert tokenizer.encode(np.zeros((1, 8, 12, 3), dtype=np.uint8)).shape == (1, 25)
    for given in (torch.zeros(1, 3, 12, 8), np.zeros((1, 12, 8, 3), dtype=np.uint8)):
        with pytest.raises(InputError, match=r"^images: expected shape \(batch, 3, 8, 12\), float in \[-1, 1\]"):
            tokenizer.encode(given)


@pytest.mark.parametrize("value", [1.1, -1.1, math.nan])
@torch.no_grad()
def test_pictures_out_of_range_are_refused(tokenizer: MultiScaleVQVAE, images: Tensor, value: float) -> None:
    """A single pixel is enough."""
    spoilt = images.clone()
    spoilt[2, 1, 3, 4] = value
    with pytest.raises(InputError, match=r"^images: expected floats in \[-1, 1\], got "):
        tokenizer.encode(spoilt)


@torch.no_grad()
def test_features_and_pictures_are_float32_in_any_autocast(tokenizer: MultiScaleVQVAE, images: Tensor) -> None:
    """As in training with mixed precision: near the exact ones, and not equal to them."""
    exact = tokenizer.features(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, painted = tokenizer.features(images), tokenizer.paint(exact)
    assert low.dtype == painted.dtype == torch.float32
    assert 0 < (low - exact).std() / exact.std() < 0.05
    assert 0 < (painted - tokenizer.paint(exact)).abs().max() < 0.1


def test_a_file_without_room_for_the_config_is_told_before_a_model_is_made(make_tokenizer: Make, tmp_path) -> None:
    """Of parameters and of blocks: either would take hours to make."""
    make_tokenizer().save(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for name, wrong in (("codebook_size", 2**20), ("residual_blocks", 200)):
        path.write_text(json.dumps({"tokenizer": values["tokenizer"] | {name: wrong}}))
        with pytest.raises(InputError, match=r"tokenizer.safetensors: expected [\d,]+ parameters in [\d,]+ blocks"):
            MultiScaleVQVAE.load(tmp_path)
