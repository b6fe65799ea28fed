"""Laws of what users try first, unread: one label, one seed, an array, a Pillow image, `.to`, `print(pipe)`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import nextscale
from nextscale import InputError, Pipeline
from nextscale.images import from_pil, from_unit, to_pil, to_uint8
from nextscale.sampling.guidance import constant_guidance

Make = Callable[..., Any]

# -- what it is --------------------------------------------------------------------------------------------------------


def test_a_pipeline_says_what_it_is(pipe: Pipeline, make_tokenizer: Make, make_transformer: Make) -> None:
    """Model, size, classes, device, precision, on one line; classes that are numbers need no list."""
    parameters = sum(weight.numel() for weight in pipe.transformer.parameters()) / 1e6
    assert repr(pipe) == (
        f"Pipeline(VAR-d3, {parameters:.1f} M parameters, 8x8 px, 5 classes: ant, bee, cat, ..., on cpu in float32)"
    )
    plain = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    assert repr(plain).endswith("5 classes, on cpu in bfloat16)")


def test_a_pipeline_moves(make_tokenizer: Make, make_transformer: Make) -> None:
    """It is the same one, and paints the same pictures; away from shapes alone there is no way."""
    pipe = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    before = pipe.generate([1, 2]).images
    assert pipe.to("cpu") is pipe
    assert torch.equal(pipe.generate([1, 2]).images, before)
    assert pipe.to(torch.device("meta")).device.type == "meta"
    assert all(weight.is_meta for model in (pipe.tokenizer, pipe.transformer) for weight in model.parameters())
    assert pipe.generate([1, 2]).images.is_meta
    with pytest.raises(InputError, match="device: expected weights to move to cpu, got shapes alone, on meta"):
        pipe.to("cpu")
    with pytest.raises(InputError, match="device: expected auto, cpu, or an accelerator that is there, got tpu9"):
        pipe.to("tpu9")


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "seeds", "meant"),
    [
        (3, None, ([3], [0])),
        ("cat", None, ([2], [0])),
        ("cat", 7, ([2], [7])),
        ([3, "cat", 5], 7, ([3, 2, 5], [7, 8, 9])),
        (3, [4, 9, 4], ([3, 3, 3], [4, 9, 4])),
        (np.int64(3), np.int32(2), ([3], [2])),
        (np.array([3, 1]), np.array([2, 0]), ([3, 1], [2, 0])),
        (torch.tensor([3, 1]), torch.tensor(2), ([3, 1], [2, 3])),
        ((label for label in (3, 1)), range(2), ([3, 1], [0, 1])),
        ([3], -(2**70), ([3], [-(2**70)])),
    ],
)
def test_one_label_and_one_seed_are_enough(pipe: Pipeline, labels: Any, seeds: Any, meant: Any) -> None:
    """A label alone is for every seed, a seed alone counts up from there."""
    out, expected = pipe.generate(labels, seeds), pipe.generate(*meant)
    assert torch.equal(out.tokens, expected.tokens)
    assert out.requests == expected.requests
    assert [(request.label, request.seed) for request in out.requests] == list(zip(*meant, strict=True))


@pytest.mark.parametrize(
    ("labels", "seeds", "told"),
    [
        (3.5, None, "labels: expected names or numbers of classes, got 3.5"),
        (None, None, "labels: expected at least one, or a prompt, got none"),
        (3, "4", "seeds: expected integers, got '4'"),
        (3, 0.5, "seeds: expected integers, got 0.5"),
        (3, [], "labels: expected at least one, got none"),
        ("cow", 0, "label: expected one of ant, bee, cat, dog, eel, got 'cow'"),
    ],
)
def test_what_is_neither_is_refused_at_the_call(pipe: Pipeline, labels: Any, seeds: Any, told: str) -> None:
    """Of `stream`, too, before it is walked."""
    for door in (pipe.generate, pipe.stream):
        with pytest.raises(InputError) as refused:
            door(labels, seeds)
        assert str(refused.value) == told


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_what_was_generated_has_a_length_and_is_pictures(pipe: Pipeline) -> None:
    """Rounded to 8 bits, as files are."""
    out = pipe.generate([3, 4, 5])
    pictures = out.pil()
    assert len(out) == len(pictures) == 3
    assert all((picture.mode, picture.size) == ("RGB", (8, 8)) for picture in pictures)
    for picture, image in zip(pictures, out.images, strict=True):
        assert torch.equal(from_pil(picture), from_pil(to_pil(from_unit(image))))
        assert (from_pil(picture) - from_unit(image)).abs().max() <= 1 / 255 + 1e-6


def test_pictures_are_saved_with_what_they_were_painted_from(pipe: Pipeline, tmp_path: Path) -> None:
    """Enough to paint each again; the same label and seed twice are two files."""
    out = pipe.generate(["cat", 5, "cat"], [4, 5, 4], guidance=2, top_k=30, top_p=0.8, temperature=0.9)
    paths = out.save(tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["2-cat-seed4.png", "5-no-class-seed5.png", "2-cat-seed4-2.png"]
    assert sorted(paths) == sorted((tmp_path / "a" / "b").iterdir())
    for path, picture, tokens in zip(paths, out.pil(), out.tokens, strict=True):
        with Image.open(path) as stored:
            assert stored.tobytes() == picture.tobytes()
            request = json.loads(stored.text["nextscale"])  # type: ignore[attr-defined]
        label, seed = request.pop("label"), request.pop("seed")
        assert request.pop("name") == (*pipe.classes, "no class")[label]
        assert torch.equal(pipe.generate([label], [seed], **request).tokens[0], tokens)


def test_a_schedule_is_noted_as_its_weights(pipe: Pipeline) -> None:
    """A function has no other form in a file; a number stays what was given."""
    assert pipe.generate(3, guidance=constant_guidance(2)).requests[0].guidance == (2, 2, 2, 2)
    assert pipe.generate(3, guidance=2).requests[0].guidance == 2
    assert next(pipe.stream(3, guidance=2)).requests == pipe.generate(3, guidance=2).requests


# -- what goes in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def levels(images: Tensor) -> Tensor:
    """The four pictures, (4, 3, 8, 8) uint8."""
    return to_uint8(images)


@pytest.fixture
def floats(levels: Tensor) -> Tensor:
    """The same, float32 in [-1, 1]."""
    return levels / 127.5 - 1


def forms(floats: Tensor, levels: Tensor) -> Iterator[Any]:
    """The same pictures in every form people have them in."""
    arrays = levels.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(array) for array in arrays]
    yield floats.double()
    yield floats.numpy()
    yield floats.numpy().astype(np.float64)[::-1][::-1]
    yield floats.permute(0, 2, 3, 1).numpy()
    yield levels.numpy()
    yield arrays
    yield list(arrays)
    yield pictures
    yield [floats[:2], pictures[2], arrays[3]]
    frozen = arrays.copy()
    frozen.flags.writeable = False
    yield frozen


def test_pictures_go_in_as_people_have_them(pipe: Pipeline, floats: Tensor, levels: Tensor) -> None:
    """Arrays, channels last too, Pillow images, lists of any; their tokens are those of the tensor.

    Floats are in [-1, 1] for the tokenizer and in [0, 1] for the pipeline.
    """
    unit = levels / 255
    tokens, painted = pipe.tokenizer.encode(floats), pipe.reconstruct(unit)
    torch.testing.assert_close(painted, (pipe.tokenizer.decode(tokens) + 1) / 2)
    for form in forms(floats, levels):
        assert torch.equal(pipe.tokenizer.encode(form), tokens)
    for form in (*forms(unit, levels), levels):
        assert torch.equal(pipe.reconstruct(form), painted)
    torch.testing.assert_close(pipe.reconstruct(unit[1]), painted[1:2])


def test_a_pillow_image_may_have_any_size_and_mode(pipe: Pipeline) -> None:
    """It is covered and centre-cropped as training data are, on white, upright."""
    picture = Image.new("RGBA", (40, 16), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 40, 8))
    middle = Image.new("RGB", (16, 16), "white")
    middle.paste((0, 0, 255), (0, 0, 16, 8))
    expected = from_pil(middle.resize((8, 8), Image.Resampling.LANCZOS))
    assert torch.equal(pipe.tokenizer.encode(picture), pipe.tokenizer.encode(expected[None]))
    with pytest.raises(InputError, match="expected a readable picture, .* floating-point pixels have no agreed range"):
        pipe.reconstruct(Image.new("F", (8, 8)))


@pytest.mark.parametrize(
    ("door", "change", "told"),
    [
        ("tokenizer", lambda unit: unit * 255, r"got 0 \.\. 255; x / 127\.5 - 1 brings \[0, 255\] there$"),
        ("tokenizer", lambda unit: (unit * 2 - 1) * 1.02, r"expected floats in \[-1, 1\], got -1\.02 \.\. 1\.02$"),
        ("tokenizer", lambda unit: unit * float("nan"), r"got nan \.\. nan$"),
        (
            "tokenizer",
            lambda unit: unit.clone().index_fill_(0, torch.tensor(0), float("inf")),
            r"got (0|inf) \.\. inf$",
        ),
        ("pipeline", lambda unit: unit * 255, r"got 0 \.\. 255; x / 255 brings \[0, 255\] there$"),
        ("pipeline", lambda unit: unit * 2 - 1, r"got -1 \.\. 1; \(x \+ 1\) / 2 brings \[-1, 1\] there$"),
        ("pipeline", lambda unit: unit * 1.01, r"expected floats in \[0, 1\], got 0 \.\. 1\.01$"),
        ("pipeline", lambda unit: unit - 0.01, r"got -0\.01 \.\. 0\.99$"),
        ("pipeline", lambda unit: unit * float("nan"), r"got nan \.\. nan$"),
    ],
)
def test_floats_out_of_range_are_refused(
    pipe: Pipeline, levels: Tensor, door: str, change: Callable[[Tensor], Tensor], told: str
) -> None:
    """They would saturate, or be taken for paler pictures, in silence."""
    unit = levels / 255
    unit[:, :, 0, :2] = torch.tensor([0.0, 1.0])
    given, enter = change(unit), pipe.reconstruct if door == "pipeline" else pipe.tokenizer.encode
    for form in (given, given.double(), given.numpy(), list(given)):
        with pytest.raises(InputError, match=told):
            enter(form)


def test_rounding_is_in_range(pipe: Pipeline, levels: Tensor) -> None:
    """A level of 8 bits beyond either end, and what half precision leaves."""
    unit = torch.cat([levels / 255, torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)])
    for given in (unit + 1 / 256, unit - 1 / 256, unit.bfloat16(), unit.half(), unit.half().numpy()):
        pipe.reconstruct(given)
        pipe.tokenizer.encode(given * 2 - 1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cat.png", "images: expected tensors, arrays or Pillow images, got str"),
        ([], "images: expected at least one, got none"),
        (np.zeros((8, 8, 3), np.int64), r"float in \[(-1|0), 1\] or uint8, got \(3, 8, 8\) int64"),
        (np.zeros((2, 8, 9, 3), np.float32), r"expected shape \(batch, 3, 8, 8\), .*, got \(2, 3, 8, 9\) float32"),
        (np.array([None]), "images: expected uint8 or floats, got an array of object"),
    ],
)
def test_what_is_no_picture_is_refused(pipe: Pipeline, given: Any, told: str) -> None:
    """With what was expected."""
    for door in (pipe.tokenizer.encode, pipe.reconstruct):
        with pytest.raises(InputError, match=told):
            door(given)


# -- where it runs -----------------------------------------------------------------------------------------------------


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    """torch's, for as long as the block runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float16, "cpu"), (torch.float32, "meta")])
def test_pictures_do_not_depend_on_torchs_defaults(
    make_tokenizer: Make,
    make_transformer: Make,
    tmp_path: Path,
    images: Tensor,
    dtype: torch.dtype,
    device: str,
    precision: Any,
) -> None:
    """Made, saved, loaded and used under another default dtype or device: equal tokens, float32 weights on the CPU."""

    def everything(folder: str) -> tuple[Tensor, ...]:
        preset = Pipeline.from_preset("emoji-32", precision=precision)
        assert {weight.dtype for weight in preset.tokenizer.parameters()} == {torch.float32}
        made = preset.generate([1], [3])
        Pipeline(make_tokenizer(), make_transformer(), precision="fp32").save(tmp_path / folder)
        pipe = Pipeline.load(tmp_path / folder, precision=precision)
        out = pipe.generate([1, 2], smooth=True)
        tokens = pipe.tokenizer.encode(images)
        inputs = pipe.tokenizer.teacher_inputs(tokens)
        logits = pipe.transformer(tokens[:, 0] % 5, inputs)
        return made.tokens, out.tokens, out.images, tokens, inputs, logits.detach(), pipe.reconstruct((images + 1) / 2)

    expected = everything("plain")
    with defaults(dtype, device):
        got = everything("other")
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "changes"), [("fp32", {"shared_modulation": True, "normalized_attention": False}), ("bf16", {})]
)
def test_shapes_alone_go_through_the_whole_pipeline(
    make_tokenizer: Make, make_transformer: Make, precision: Any, changes: dict[str, Any]
) -> None:
    """On the meta device, where the largest model takes no memory."""
    pipe = Pipeline(make_tokenizer(), make_transformer(**changes), device="meta", precision=precision)
    size, total = pipe.tokenizer.config, pipe.tokenizer.config.scales.total
    shape = (2, 3, size.height, size.width)
    out = pipe.generate([1, 2], guidance=1.5, memory=1 << 40)
    assert (out.images.shape, out.tokens.shape) == (shape, (2, total))
    assert [step.preview().shape for step in pipe.stream([1, 2], smooth=True)] == [shape] * len(size.scales)
    images = torch.empty(shape, device="meta")
    tokens = pipe.tokenizer.encode(images)
    assert pipe.reconstruct(images).shape == shape
    inputs = pipe.tokenizer.teacher_inputs(tokens)
    logits = pipe.transformer(torch.empty(2, dtype=torch.int64, device="meta"), inputs)
    assert (logits.shape, logits.dtype, logits.device.type) == ((2, total, size.codebook_size), torch.float32, "meta")


@pytest.mark.slow
def test_shapes_alone_are_no_pictures_and_no_files(tmp_path: Path) -> None:
    """Said in a sentence."""
    pipe = nextscale.Pipeline.from_preset("emoji-32", device="meta")
    for door in (pipe.generate(1).pil, lambda: pipe.generate(1).save(tmp_path), lambda: pipe.save(tmp_path)):
        with pytest.raises(InputError, match="got shapes alone, on the meta device"):
            door()
    assert not list(tmp_path.iterdir())
