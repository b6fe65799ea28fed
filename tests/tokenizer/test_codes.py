"""Laws of the kinds of codes: numbering, gradients, gains, and the walk over scales with each of them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import TOKENIZER
from torch import Tensor

from nextscale import InputError, MultiScaleVQVAE, Scales
from nextscale.config import TokenizerConfig, from_json, to_json
from nextscale.release import convert
from nextscale.tokenizer.codes import ScalarLevels, SphereCorners, SpherePairs, rotated, valued
from nextscale.tokenizer.quantizer import evenness, nearest_scale, spherical_commitment
from nextscale.tokenizer.rescaled import rescaled

Make = Callable[..., MultiScaleVQVAE]

FIXED: list[dict[str, Any]] = [
    {"quantizer": "fsq", "levels": (8, 5, 5, 5)},
    {"quantizer": "fsq", "levels": (4, 3, 16), "phi_count": 0},
    {"quantizer": "bsq", "bits": 6},
    {"quantizer": "bsq", "bits": 40, "phi_sharing": "none"},
    {"quantizer": "bsq", "bits": 5, "scales": Scales([1, (2, 1), (3, 2), (4, 6)])},
    {"quantizer": "sphere", "code_channels": 24},
]
KINDS = [*FIXED, {"reparametrised": True}]


@pytest.fixture(params=FIXED, ids=str)
def fixed(request: pytest.FixtureRequest, make_tokenizer: Make) -> MultiScaleVQVAE:
    return with_gains(make_tokenizer(**request.param))


def with_gains(tokenizer: MultiScaleVQVAE) -> MultiScaleVQVAE:
    """Gains that fall from scale to scale."""
    tokenizer.quantizer.gain_K.copy_(2.0 ** -torch.arange(len(tokenizer.config.scales)))
    return tokenizer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features_of(tokenizer: MultiScaleVQVAE, *, batch: int = 3) -> Tensor:
    config = tokenizer.config
    return drawn(batch, config.code_channels, config.scales.height, config.scales.width)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [ScalarLevels((8, 5, 3)), ScalarLevels((4, 7)), SphereCorners(7)], ids=str)
def test_every_number_is_one_code_and_every_code_its_own_nearest(codes: ScalarLevels | SphereCorners) -> None:
    """Numbering is bijective, and what is bounded to a code is given its number."""
    levels = codes.levels if isinstance(codes, ScalarLevels) else (2,) * codes.bits
    numbers = torch.arange(math.prod(levels))
    vectors = codes(numbers)
    assert len(vectors.unique(dim=0)) == len(numbers)
    before = vectors if isinstance(codes, SphereCorners) else unbounded(vectors, levels)
    assert torch.equal(codes.nearest(before), numbers)


def unbounded(codes_VC: Tensor, levels: tuple[int, ...]) -> Tensor:
    """z of which tanh(z + atanh(o / h)) h - o is the code times half of its levels."""
    n = torch.tensor(levels)
    h, o = (n - 1) * 1.001 / 2, torch.where(n % 2 == 0, 0.5, 0.0)
    return torch.atanh((codes_VC * (n // 2) + o) / h) - torch.atanh(o / h)


def test_levels_are_numbered_and_spaced_as_published() -> None:
    """Index = sum of digits times the levels before; codes lie in -1 .. 1, an even number of levels without the end."""
    codes = ScalarLevels((8, 5))
    assert codes(torch.tensor([0, 1, 7, 8, 39])).tolist() == [[-1, -1], [-0.75, -1], [0.75, -1], [-1, -0.5], [0.75, 1]]
    assert codes.nearest(torch.tensor([[0.0, 0.0], [-9, 9], [9, -9]])).tolist() == [4 + 8 * 2, 8 * 4, 7]
    assert codes.bounded(torch.zeros(2)).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_corners_are_numbered_by_their_signs() -> None:
    """Bit i is whether z_i is above 0; there may be far more than could be held."""
    codes = SphereCorners(60)
    z = drawn(5, 60)
    by_hand = [sum(int(value > 0) << i for i, value in enumerate(row)) for row in z.tolist()]
    assert codes.nearest(z).tolist() == by_hand
    torch.testing.assert_close(codes(codes.nearest(z)), z.sign() / 60**0.5)


def test_pairs_on_the_sphere_are_the_permutations_and_numbered_by_channels_and_signs() -> None:
    """(4, 4, 0 ...) / sqrt(32) with either sign, in 24 dimensions 1,104; each its own nearest, at any length."""
    codes = SpherePairs(24)
    vectors = codes(torch.arange(1104))
    assert len({tuple(row) for row in (vectors * 2**0.5).round().tolist()}) == 1104
    assert [*map(len, (vectors.nonzero(), vectors.norm(dim=1).unique()))] == [2 * 1104, 1]
    torch.testing.assert_close(vectors.abs().amax(dim=1), torch.full((1104,), 4 / 32**0.5))
    assert torch.equal(codes.nearest(vectors * 7), torch.arange(1104))
    assert SpherePairs(3)(torch.tensor([[0], [6], [11]]))[:, 0].mul(2**0.5).round().tolist() == [
        [-1, -1, 0],
        [-1, 0, 1],
        [0, 1, 1],
    ]


def test_the_nearest_pair_has_the_largest_product() -> None:
    """Of all codes; where products are alike, any of them."""
    codes, z = SpherePairs(24), drawn(99, 24)
    products = z @ codes(torch.arange(1104)).T
    torch.testing.assert_close((codes(codes.nearest(z)) * z).sum(dim=1), products.amax(dim=1))


# ---- the walk --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_training_paints_is_what_decoding_paints(fixed: MultiScaleVQVAE) -> None:
    """Tokens, every canvas and the teacher inputs, to the bit; and encoding what one scale painted gives its tokens."""
    quantizer, f = fixed.quantizer, features_of(fixed)
    walk = quantizer(f)
    assert torch.equal(walk.tokens, quantizer.encode(f))
    for ours, theirs in zip(quantizer.canvases(walk.tokens), walk.canvases, strict=True):
        assert torch.equal(ours, theirs)
    assert walk.f_hat(f) is walk.canvases[-1]
    pooled = [quantizer.pool(canvas, k).flatten(2) for k, canvas in enumerate(walk.canvases[:-1], start=1)]
    assert torch.equal(quantizer.teacher_inputs(walk.tokens), torch.cat(pooled, dim=2).transpose(1, 2))
    assert int(walk.tokens.max()) < fixed.config.codebook_size


def held(tokenizer: MultiScaleVQVAE, f0: Tensor) -> Callable[[Tensor], Tensor]:
    """The walk of features near `f0` with the roundings of `f0`: code = what is bounded + a constant."""
    quantizer, codes = copy.deepcopy(tokenizer.quantizer).double(), tokenizer.quantizer.codebook
    roundings: list[Tensor] = []

    def smooth(z: Tensor) -> Tensor:
        if isinstance(codes, ScalarLevels):
            return codes.bounded(z) / torch.tensor([level // 2 for level in codes.levels])
        return F.normalize(z, dim=-1)

    def walk(f: Tensor, keep: bool = False) -> Tensor:
        residual, canvas = f, torch.zeros_like(f)
        for k in range(len(quantizer.scales)):
            z = quantizer.pool(residual, k).permute(0, 2, 3, 1) / quantizer.gain_K[k]
            if keep:
                tokens = codes.nearest(z.flatten(0, 2)).view(z.shape[:3])
                roundings.append(codes(tokens).double() - smooth(z))
            painted = quantizer.contribution((smooth(z) + roundings[k]).permute(0, 3, 1, 2), k)
            residual, canvas = residual - painted, canvas + painted
        return canvas

    with torch.no_grad():
        walk(f0, keep=True)
    return walk


def test_straight_through_gradients_are_those_of_the_walk_with_its_roundings_held(fixed: MultiScaleVQVAE) -> None:
    """By finite differences, in a direction at random; where nothing is rounded anew, both are one function."""
    f = features_of(fixed, batch=1).requires_grad_()
    smooth = held(fixed, f.detach().double())
    ahead, weights = drawn(*f.shape, seed=1).double(), drawn(*f.shape, seed=2).double()
    (gradient,) = torch.autograd.grad((fixed.quantizer(f).f_hat(f) * weights).sum(), f)
    with torch.no_grad():
        step = 1e-5 * ahead
        difference = ((smooth(f.double() + step) - smooth(f.double() - step)) * weights).sum() / 2e-5
    torch.testing.assert_close((gradient * ahead).sum(), difference, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_a_corner_is_that_of_the_unit_vector() -> None:
    """It is not multiplied by 1/sqrt(d) a second time."""
    z, weights = drawn(4, 9).requires_grad_(), drawn(4, 9, seed=1)
    codes = SphereCorners(9)
    (ours,) = torch.autograd.grad((codes.through(z, codes.nearest(z)) * weights).sum(), z)
    (theirs,) = torch.autograd.grad((F.normalize(z, dim=-1) * weights).sum(), z)
    torch.testing.assert_close(ours, theirs)


def test_a_value_with_another_gradient_is_that_value() -> None:
    """To the bit, whatever the surrogate is."""
    assert torch.equal(valued(drawn(99), 1e4 * drawn(99, seed=1)), drawn(99))


def test_fewer_scales_and_other_scales_keep_their_gains(fixed: MultiScaleVQVAE) -> None:
    """A scale takes the gain of the one that has its share of the tokens of the last."""
    scales = fixed.config.scales
    fewer = Scales([scales.sizes[0], scales.sizes[2], scales.sizes[3]])
    if fixed.config.phi_sharing == "none":
        return
    quantizer = fixed.quantizer.rescaled(fewer)
    assert quantizer.gain_of == [0, 2, 3]
    painted = fixed.quantizer(features_of(fixed), torch.tensor([1, 2, 4]))
    whole = fixed.quantizer(features_of(fixed))
    assert torch.equal(painted.canvases[-1][0], whole.canvases[0][0])
    larger = Scales([(2 * h, 2 * w) for h, w in scales.sizes])
    other = rescaled(fixed, larger)
    assert torch.equal(other.quantizer.gain_K, fixed.quantizer.gain_K)
    assert nearest_scale(Scales([1, 8]), Scales([1, 2, 4])) == [0, 2]


# ---- learned codes ---------------------------------------------------------------------------------------------------


def test_the_rotation_trick_turns_gradients_as_it_turns_vectors() -> None:
    """Forward the code; the gradient is the linear map of the rotation, made here from an orthonormal basis."""
    e, q = drawn(1, 6)[0].double(), drawn(1, 6, seed=1)[0].double()
    e_unit = e / e.norm()
    aside = F.normalize(q - (q @ e_unit) * e_unit, dim=0)
    cosine, sine = q @ e_unit / q.norm(), q @ aside / q.norm()
    plane = torch.stack([e_unit, aside])
    turn = torch.tensor([[cosine, -sine], [sine, cosine]]).double()
    rotation = torch.eye(6).double() + plane.T @ (turn - torch.eye(2)) @ plane
    z = e.clone().requires_grad_()
    out = rotated(z[None], q[None])[0]
    torch.testing.assert_close(out, q)
    jacobian = torch.stack([torch.autograd.grad(value, z, retain_graph=True)[0] for value in out])
    torch.testing.assert_close(jacobian, q.norm() / e.norm() * rotation)


def test_rotation_changes_gradients_and_nothing_else(make_tokenizer: Make) -> None:
    """The same canvas; codes still learn by the codebook loss alone."""
    tokenizer = make_tokenizer()
    f = features_of(tokenizer).requires_grad_()
    straight, turned = tokenizer.quantizer(f), tokenizer.quantizer(f, rotation=True)
    assert turned.flowing is not None
    torch.testing.assert_close(turned.flowing, straight.canvases[-1])
    (gradient,) = torch.autograd.grad(turned.f_hat(f).square().sum(), f, retain_graph=True)
    (other,) = torch.autograd.grad(straight.f_hat(f).square().sum(), f)
    assert (gradient - other).abs().max() > 0.1
    codes = tokenizer.quantizer.learned.weight
    assert torch.autograd.grad(turned.f_hat(f).sum(), codes, allow_unused=True) == (None,)


def test_reparametrised_codes_move_together(make_tokenizer: Make) -> None:
    """At first they are the random ones; then they are these times a matrix, which alone learns."""
    tokenizer, plain = make_tokenizer(reparametrised=True), make_tokenizer()
    codebook, f = tokenizer.quantizer.learned, features_of(tokenizer)
    assert torch.equal(tokenizer.quantizer.encode(f), plain.quantizer.encode(f))
    assert {name for name, weight in codebook.named_parameters() if weight.requires_grad} == {"basis_CC"}
    with torch.no_grad():
        codebook.basis_CC.copy_(drawn(8, 8))
    numbers = torch.arange(64)
    torch.testing.assert_close(codebook(numbers), codebook.weight @ drawn(8, 8))
    assert torch.equal(codebook.nearest(codebook.vectors().detach()), numbers)
    tokenizer.quantize(f).loss.backward()
    assert codebook.basis_CC.grad.abs().sum() > 0


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_commitment_of_corners_is_by_hand() -> None:
    """Mean over scales of the mean squared distance of unit vectors from their corners; 0 at corners."""
    units = F.normalize(drawn(7, 3), dim=1)
    by_hand = ((units.sign() / 3**0.5 - units) ** 2).sum(dim=1).mean()
    torch.testing.assert_close(spherical_commitment([drawn(7, 3), torch.ones(2, 3)]), by_hand / 2)


def test_evenness_is_the_share_of_the_entropy_of_each_digit() -> None:
    """1 where all values occur alike, 0 where one does, between where it is in between."""
    tokens = torch.tensor([0, 1, 2, 3])  # of sizes 2 and 3: digits (0, 1, 0, 1) and (0, 0, 1, 1)
    (even,) = evenness([tokens], (2, 3))
    assert even.tolist() == pytest.approx([1, math.log(2) / math.log(3)])
    (still,) = evenness([torch.zeros(9, dtype=torch.int64)], (2,) * 40)
    assert not still.any()


# ---- files and configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_every_kind_is_saved_and_loaded(
    make_tokenizer: Make, tmp_path: Path, images: Tensor, changes: dict[str, Any]
) -> None:
    """Config and weights, gains too: the same tokens and pictures; parameters are counted right."""
    tokenizer = make_tokenizer(**changes)
    if tokenizer.config.fixed:
        with_gains(tokenizer)
    tokenizer.save(tmp_path)
    loaded = MultiScaleVQVAE.load(tmp_path)
    assert loaded.config == tokenizer.config
    pictures = F.interpolate(images, (tokenizer.config.height, tokenizer.config.width))
    tokens = tokenizer.encode(pictures)
    assert torch.equal(loaded.encode(pictures), tokens)
    assert torch.equal(loaded.decode(tokens, through=2), tokenizer.decode(tokens, through=2))
    assert tokenizer.config.parameters == sum(weight.numel() for weight in tokenizer.parameters())


def test_a_plain_codebook_has_the_config_it_always_had() -> None:
    """In files and in words: nothing of other kinds is in it."""
    values = to_json(TOKENIZER)
    assert [*values] == [
        "scales",
        "codebook_size",
        "code_channels",
        "channels",
        "multipliers",
        "residual_blocks",
        "phi_sharing",
        "phi_count",
        "distance",
    ]
    assert "quantizer" not in repr(TOKENIZER)
    assert from_json(TokenizerConfig, values) == TOKENIZER


def test_codes_and_channels_follow_from_levels_and_bits() -> None:
    """Whatever is given for them."""
    config = dataclasses.replace(TOKENIZER, quantizer="fsq", levels=(8, 5, 5, 5))
    assert (config.codebook_size, config.code_channels, config.countable) == (1000, 4, True)
    config = dataclasses.replace(TOKENIZER, quantizer="bsq", bits=62)
    assert (config.codebook_size, config.code_channels, config.countable) == (2**62, 62, False)
    assert config.picture_bits == 30 * 62
    assert from_json(TokenizerConfig, to_json(config)) == config
    config = dataclasses.replace(TOKENIZER, quantizer="sphere", code_channels=24)
    assert (config.codebook_size, config.fixed, config.digits, config.counted) == (1104, True, (), (1104,))
    assert from_json(TokenizerConfig, to_json(config)) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantizer": "vq"}, "tokenizer quantizer: expected one of codebook, fsq, bsq, sphere, got 'vq'"),
        ({"quantizer": "fsq"}, "tokenizer levels: expected for quantizer fsq"),
        ({"levels": (8, 8)}, "tokenizer levels: expected for quantizer fsq and for no other"),
        ({"quantizer": "fsq", "levels": (2, 8)}, r"tokenizer levels: expected 3 .. 65536 each \(for two, take bsq\)"),
        ({"quantizer": "fsq", "levels": (65536,) * 4}, r"product of at most 2\^62"),
        ({"quantizer": "bsq"}, "tokenizer bits: expected for quantizer bsq"),
        ({"quantizer": "bsq", "bits": 63}, "tokenizer bits: expected at most 62, got 63"),
        ({"quantizer": "bsq", "bits": 8, "reparametrised": True}, "reparametrised: expected of a codebook alone"),
        ({"quantizer": "sphere", "code_channels": 1}, "code_channels: expected 2 .. 181 for quantizer sphere, got 1"),
        ({"quantizer": "sphere", "code_channels": 182}, "expected 2 .. 181 for quantizer sphere, got 182"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], words: str) -> None:
    """In one line."""
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TOKENIZER, **changes)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_release_holds_none_of_them(make_tokenizer: Make, changes: dict[str, Any]) -> None:
    """Its format has a plain codebook alone."""
    with pytest.raises(InputError, match="expected a tokenizer with a plain codebook, as the release's format holds"):
        convert.names(make_tokenizer(**changes))
