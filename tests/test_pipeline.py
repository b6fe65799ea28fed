"""Laws of what people hold in their hands: what each door of Pipeline gives, refuses and leaves alone."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline, Scales
from nextscale.files import checkpoint
from nextscale.images import to_unit
from nextscale.sampling.memory import image_bytes

Make = Callable[..., Any]
NAMES = ["ant", "bee", "cat", "dog", "eel"]
FILES = {"config.json", "tokenizer.safetensors", "transformer.safetensors"}


def weights(pipe: Pipeline) -> dict[str, Tensor]:
    models = {"tokenizer": pipe.tokenizer, "transformer": pipe.transformer}
    return {f"{kind}.{name}": tensor for kind, model in models.items() for name, tensor in model.state_dict().items()}


def assert_same_weights(a: Pipeline, b: Pipeline) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def saved(pipe: Pipeline, tmp_path: Path) -> Path:
    pipe.save(tmp_path)
    return tmp_path


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [False, True])
def test_generated_images_and_tokens_have_the_promised_form(pipe: Pipeline, smooth: bool) -> None:
    """(B, 3, H, W) float32 in [0, 1] and (B, L) int64 in the codebook."""
    out = pipe.generate(labels=[3, 4], seeds=[0, 1], smooth=smooth)
    assert (out.images.shape, out.images.dtype) == ((2, 3, 8, 8), torch.float32)
    assert 0 <= out.images.min() < out.images.max() <= 1
    assert (out.tokens.shape, out.tokens.dtype) == ((2, 30), torch.int64)
    assert 0 <= out.tokens.min() < out.tokens.max() < 64


@torch.no_grad()
def test_image_is_the_decoded_tokens_in_the_unit_range(pipe: Pipeline) -> None:
    """What the tokenizer decodes, from [-1, 1] to [0, 1]."""
    out = pipe.generate(labels=[3, 4, 5])
    torch.testing.assert_close(out.images, (pipe.tokenizer.decode(out.tokens) + 1) / 2, atol=1e-5, rtol=0)


def test_stream_ends_where_generate_does(pipe: Pipeline) -> None:
    """Same tokens scale by scale, last preview the same image, previews in between that are other images."""
    settings: dict[str, Any] = {"labels": ["cat", 5], "seeds": [4, 5], "guidance": 2.0, "top_k": 30, "top_p": 0.8}
    out, steps = pipe.generate(**settings), list(pipe.stream(**settings))
    assert [step.scale for step in steps] == [0, 1, 2, 3]
    for step, tokens in zip(steps, pipe.tokenizer.config.scales.split(out.tokens), strict=True):
        assert torch.equal(step.tokens, tokens)
    previews = [step.preview() for step in steps]
    assert torch.equal(previews[-1], out.images)
    assert all(preview.shape == out.images.shape for preview in previews)
    assert len(torch.stack(previews).flatten(1).unique(dim=0)) == 4
    through = pipe.tokenizer.decode(out.tokens, through=2).detach()
    torch.testing.assert_close(previews[1], (through + 1) / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_image_does_not_depend_on_its_batch(pipe: Pipeline, guidance: float) -> None:
    """Alone, among eight, in another order: identical tokens, images equal up to rounding."""
    labels, seeds = [0, 1, 2, 3, 4, 5, "bee", 2], [7, 7, 7, 3, 2, 1, 0, -5]
    together = pipe.generate(labels, seeds, guidance=guidance)
    backwards = pipe.generate(labels[::-1], seeds[::-1], guidance=guidance)
    assert torch.equal(backwards.tokens.flip(0), together.tokens)
    for i in range(8):
        alone = pipe.generate([labels[i]], [seeds[i]], guidance=guidance)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-5, rtol=0)


def test_every_setting_reaches_the_draw(pipe: Pipeline) -> None:
    """Each changes the tokens, or for `smooth` the image, of some of eight pictures."""
    labels = [0] * 8
    plain = pipe.generate(labels)
    for setting in ({"guidance": 4.0}, {"top_k": 2}, {"top_p": 0.2}, {"temperature": 0.1}):
        assert not torch.equal(pipe.generate(labels, **setting).tokens, plain.tokens), setting
    assert not torch.equal(pipe.generate(labels, smooth=True).images, plain.images)
    greedy = pipe.generate(labels, temperature=0.0, guidance=0.0)
    assert len(greedy.tokens.unique(dim=0)) == 1


def test_seeds_count_from_zero_when_none_are_given(pipe: Pipeline) -> None:
    """And may be an array."""
    expected = pipe.generate([1, 2, 3], seeds=[0, 1, 2]).tokens
    assert torch.equal(pipe.generate([1, 2, 3]).tokens, expected)
    assert torch.equal(pipe.generate([1, 2, 3], seeds=np.arange(3)).tokens, expected)  # type: ignore[arg-type]


def test_labels_are_names_or_numbers(pipe: Pipeline) -> None:
    """A name, or a number, also from an array; the number of classes is "no class"."""
    for label in ("dog", 3, np.int64(3), torch.tensor(3)):
        assert pipe.label(label) == 3  # type: ignore[arg-type]
    assert pipe.label(5) == 5
    assert torch.equal(pipe.generate(["dog"]).tokens, pipe.generate([3]).tokens)
    assert not torch.equal(pipe.generate([5]).tokens, pipe.generate([3]).tokens)


def test_a_string_is_a_name_and_an_integer_a_number(tokenizer: MultiScaleVQVAE, transformer: VAR) -> None:
    """Also where classes are called like the numbers of others."""
    pipe = Pipeline(tokenizer, transformer, classes=["1", "2", "3", "4", "5"], precision="fp32")
    assert [pipe.label(label) for label in ("3", 3, "5", 5)] == [2, 3, 4, 5]
    assert [request.name for request in pipe.generate(["3", 3]).requests] == ["3", "4"]
    assert torch.equal(pipe.generate(["3"]).tokens, pipe.generate([2]).tokens)
    numbered = Pipeline(tokenizer, transformer, precision="fp32")
    assert [numbered.label(label) for label in ("3", 3, 5)] == [3, 3, 5]
    with pytest.raises(InputError, match="expected one of 0, 1, 2, 3, 4, got '5'; the class of this number is the int"):
        numbered.label("5")


@pytest.mark.parametrize("label", [6, -1, 2**16000, "wolf", "6", "", 2.5, None, float("nan"), float("inf")], ids=type)
def test_labels_that_are_no_class_are_refused(pipe: Pipeline, label: Any) -> None:
    """At the call, in one line that says which there are."""
    expected = r"^label: expected (0 \.\. 4 \(or 5: no class\)|one of ant, bee|the name of a class or its number)"
    for door in (pipe.generate, pipe.stream):
        with pytest.raises(InputError, match=expected):
            door([label])


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("dgo", "; did you mean dog?"),
        ("EELS", "; did you mean eel?"),
        ("bees", "; did you mean bee?"),
        ("2", "; the class of this number is the integer 2"),
        ("giraffe", ""),
        ("99", ""),
        ("9" * 5000, ""),
        ("\N{SUPERSCRIPT TWO}", ""),
    ],
)
def test_a_mistyped_class_gets_the_nearest_names(pipe: Pipeline, asked: str, hint: str) -> None:
    """Whatever their case; text that is a number gets the number."""
    with pytest.raises(InputError) as refused:
        pipe.label(asked)
    assert str(refused.value) == f"label: expected one of ant, bee, cat, dog, eel, got {asked[:60]!r}{hint}"


def test_a_long_list_of_classes_is_cut(tokenizer: MultiScaleVQVAE, make_transformer: Make) -> None:
    """Behind the first twelve; the nearest names are looked for among all, three at most."""
    names = [f"breed {number}" for number in range(1000)]
    pipe = Pipeline(tokenizer, make_transformer(classes=1000, depth=1), classes=names, precision="fp32")
    with pytest.raises(InputError, match=r"breed 11, \.\.\., got 'breed 9995'; did you mean breed 999 or .* or .*\?$"):
        pipe.label("breed 9995")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["ant", "bee"], "^classes: expected 5 names, got 2$"),
        (["ant", "bee", "cat", "bee", "eel"], "^classes: expected every name once, got 'bee' for 1 and 3$"),
        (["ant", "bee", "cat", 3, "eel"], "^classes: expected names, got 3$"),
    ],
)
def test_classes_that_do_not_say_which_is_meant_are_refused(
    tokenizer: MultiScaleVQVAE, transformer: VAR, names: list[Any], told: str
) -> None:
    """When a pipeline is made, when it is given other names, and when one is loaded."""
    with pytest.raises(InputError, match=told):
        Pipeline(tokenizer, transformer, classes=names)
    pipe = Pipeline(tokenizer, transformer, classes=NAMES)
    with pytest.raises(InputError, match=told):
        pipe.classes = tuple(names)
    assert pipe.classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"labels": [1, 2], "seeds": [1]}, "^seeds: expected one a label, 2, got 1$"),
        ({"labels": [1], "seeds": [0.5]}, r"^seeds: expected integers, got 0\.5$"),
        ({"labels": [1], "seeds": ["x"]}, "^seeds: expected integers, got 'x'$"),
        ({"labels": []}, "^labels: expected at least one, got none$"),
        ({"labels": [1], "top_p": 2}, r"^top_p: expected 0 \.\. 1, got 2$"),
        ({"labels": [1], "guidance": float("nan")}, "^guidance: expected a finite number, got nan$"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pipe: Pipeline, settings: dict[str, Any], complaint: str) -> None:
    """In one line."""
    with pytest.raises(InputError, match=complaint):
        pipe.generate(**settings)


@torch.no_grad()
def test_reconstruction_is_encoding_and_decoding(pipe: Pipeline, images: Tensor) -> None:
    """Exactly, for all scales or the first few; without gradients, in [0, 1] where the tokenizer is in [-1, 1]."""
    unit = (images + 1) / 2
    tokens = pipe.tokenizer.encode(unit * 2 - 1)
    for through in (None, 2):
        painted = pipe.tokenizer.decode(tokens, through=through)
        assert torch.equal(pipe.reconstruct(unit, through), (painted + 1) / 2)
    with torch.enable_grad():
        assert not pipe.reconstruct(unit).requires_grad


def test_what_was_generated_can_be_reconstructed(pipe: Pipeline) -> None:
    """As floats or as 8-bit pictures, which round it: the range that comes out is the one that goes in."""
    out = pipe.generate([0, 1, 2, 3])
    tokens = pipe.tokenizer.encode(out.images * 2 - 1)
    expected = (pipe.tokenizer.decode(tokens).detach() + 1) / 2
    assert torch.equal(pipe.reconstruct(out.images), expected)
    assert torch.equal(pipe.reconstruct(out.images.double().numpy()), expected)
    levels = (out.images * 255).round().to(torch.uint8)
    assert torch.equal(pipe.reconstruct(levels), pipe.reconstruct(out.pil()))
    assert torch.equal(pipe.reconstruct(levels), pipe.reconstruct(levels / 255))


def test_what_comes_out_can_be_computed_with(pipe: Pipeline) -> None:
    """Images, previews and tokens are ordinary tensors: a gradient through them, a model trained on them."""
    out, step = pipe.generate([1]), next(iter(pipe.stream([1])))
    for picture in (out.images, step.preview()):
        factor = torch.ones(1, requires_grad=True)
        (picture * factor).sum().backward()
        assert factor.grad is not None
    assert pipe.tokenizer.decode(out.tokens).requires_grad
    assert pipe.tokenizer.quantizer.lookup(step.tokens).requires_grad


# -- hooks -------------------------------------------------------------------------------------------------------------


def test_a_logits_processor_replaces_what_is_drawn_from(pipe: Pipeline) -> None:
    """Called once a scale, in order, with what its tokens would be drawn from; what it returns is drawn from."""
    seen: list[tuple[int, Tensor]] = []

    def only_even_codes(scale: int, logits: Tensor) -> Tensor:
        seen.append((scale, logits.clone()))
        logits[..., 1::2] = -torch.inf
        return logits

    out = pipe.generate([0, 1, 2], logits_processor=only_even_codes)
    assert (out.tokens % 2 == 0).all()
    assert [(scale, logits.shape) for scale, logits in seen] == [(k, (3, (k + 1) ** 2, 64)) for k in range(4)]
    greedy = pipe.generate([0, 1, 2], temperature=0, guidance=1.5, logits_processor=lambda k, logits: logits)
    assert torch.equal(greedy.tokens, pipe.generate([0, 1, 2], temperature=0, guidance=1.5).tokens)
    seen.clear()
    first = pipe.generate(
        [0, 1, 2], temperature=0, logits_processor=lambda k, logits: seen.append((k, logits)) or logits
    )
    expected = torch.cat([logits.argmax(dim=-1) for _, logits in seen], dim=1)
    assert torch.equal(first.tokens, expected)
    streamed = [step.tokens.flatten(1) for step in pipe.stream([0, 1, 2], logits_processor=only_even_codes)]
    assert torch.equal(torch.cat(streamed, dim=1), out.tokens)


def test_a_logits_processor_may_be_a_module_that_is_trained_on_what_it_saw(pipe: Pipeline) -> None:
    """It gets ordinary tensors, and may give other formats than float32."""
    weight, seen = torch.ones(64, requires_grad=True), []

    def scaled(scale: int, logits: Tensor) -> Tensor:
        seen.append(logits)
        return (logits * weight).double()

    assert torch.equal(pipe.generate([1], logits_processor=scaled).tokens, pipe.generate([1]).tokens)
    (seen[0] * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("process", "told"),
    [
        (lambda k, logits: None, r"expected logits \(1, 1, 64\) of scale 0, got NoneType"),
        (lambda k, logits: logits[..., :9], r"expected logits \(1, 1, 64\) of scale 0, got \(1, 1, 9\) torch\.float32"),
        (lambda k, logits: logits.long(), r"got \(1, 1, 64\) torch\.int64"),
        (lambda k, logits: logits * (1 if k < 2 else torch.nan), "a finite largest logit .*, got others at scale 2"),
        (lambda k, logits: torch.full_like(logits, -torch.inf), "a finite largest logit .*, got others at scale 0"),
        (lambda k, logits: logits.index_fill(-1, torch.tensor(3), torch.inf), "got others at scale 0"),
    ],
)
def test_logits_that_nothing_can_be_drawn_from_are_refused(pipe: Pipeline, process: Any, told: str) -> None:
    """Which scale, and what came."""
    with pytest.raises(InputError, match=f"^logits_processor: .*{told}"):
        pipe.generate([1], logits_processor=process)


def test_a_callback_is_called_with_each_step(pipe: Pipeline) -> None:
    """Of each batch; what `stream` yields, before it does; an exception of its own ends the call and nothing else."""
    steps: list[Any] = []
    out = pipe.generate([1, 2, 3], callback=steps.append)
    assert [step.scale for step in steps] == [0, 1, 2, 3]
    assert torch.equal(torch.cat([step.tokens.flatten(1) for step in steps], dim=1), out.tokens)
    assert torch.equal(steps[-1].preview(), out.images)
    steps.clear()
    for step in pipe.stream([1, 2, 3], callback=steps.append):
        assert step is steps[-1]
    steps.clear()
    alone = image_bytes(pipe.tokenizer.config, pipe.transformer.config, guided=True, dtype=torch.float32)
    pipe.generate([1, 2, 3], memory=2 * alone, callback=steps.append)
    assert [[request.label for request in step.requests] for step in steps] == [[1, 2]] * 4 + [[3]] * 4

    def stop(step: Any) -> None:
        raise StopAsyncIteration

    with pytest.raises(StopAsyncIteration):
        pipe.generate([1, 2, 3], callback=stop)
    assert torch.equal(pipe.generate([1, 2, 3]).tokens, out.tokens)


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_nothing_of_torchs_is_touched(
    make_tokenizer: Make, make_transformer: Make, tmp_path: Path, untouched: Callable[[], Any], images: Tensor
) -> None:
    """By making, saving, loading, sampling and reconstructing, in float32 and in bfloat16."""
    for precision in ("fp32", "bf16"):
        with untouched():
            pipe = Pipeline(make_tokenizer(), make_transformer(), precision=precision)  # type: ignore[arg-type]
            pipe.generate([1])
            next(pipe.stream([1])).preview()
            pipe.reconstruct(to_unit(images))
            pipe.save(tmp_path)
            Pipeline.load(tmp_path, precision=precision)  # type: ignore[arg-type]
            pipe.tokenizer.train()
            pipe.transformer.eval()
            pipe.generate([1])
            assert pipe.tokenizer.training
            assert not pipe.transformer.training


def test_images_follow_their_seeds_whatever_torchs_state(pipe: Pipeline, images: Tensor) -> None:
    """The global random numbers and what was sampled before do not matter."""
    torch.manual_seed(0)
    first = pipe.generate([1, 2], seeds=[5, 6])
    torch.manual_seed(99)
    pipe.generate([3] * 3)
    pipe.reconstruct(to_unit(images))
    again = pipe.generate([1, 2], seeds=[5, 6])
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.images, again.images)


def test_stream_that_is_given_up_leaves_the_pipeline_usable(pipe: Pipeline, untouched: Callable[[], Any]) -> None:
    """The next picture is the one it would have been."""
    before = pipe.generate([1])

    def give_up(steps: Iterator[Any]) -> None:
        for step in steps:
            if step.scale == 1:
                raise KeyboardInterrupt

    with untouched():
        with pytest.raises(KeyboardInterrupt):
            give_up(pipe.stream([1]))
        after = pipe.generate([1])
    assert torch.equal(after.tokens, before.tokens)
    assert torch.equal(after.images, before.images)


# -- precision ---------------------------------------------------------------------------------------------------------


def test_loaded_in_bf16_the_blocks_are_held_low_and_the_rest_in_float32(saved: Path) -> None:
    """The tokenizer whole, and of the transformer the head and the embeddings; pictures come out in float32."""
    pipe = Pipeline.load(saved, precision="bf16")
    for name, tensor in weights(pipe).items():
        low = name.startswith("transformer.blocks.")
        assert tensor.dtype == (torch.bfloat16 if low else torch.float32), name
    out = pipe.generate([1, 2])
    assert out.images.dtype == torch.float32
    assert 0 <= out.images.min() < out.images.max() <= 1


@pytest.mark.parametrize(("precision", "lowered"), [("bf16", False), ("fp16", False), ("fp32", True)])
def test_models_that_are_given_are_shared_and_never_changed(
    make_tokenizer: Make, make_transformer: Make, precision: Any, lowered: bool
) -> None:
    """By making, sampling and moving; what is computed in another format than it is held in belongs to the pipeline."""
    tokenizer, transformer = make_tokenizer(), make_transformer()
    if lowered:
        transformer.lower_precision(torch.bfloat16)
    pipe = Pipeline(tokenizer, transformer, precision=precision)
    assert pipe.tokenizer is tokenizer
    assert pipe.transformer is transformer
    before = {name: tensor.clone() for name, tensor in weights(pipe).items()}
    places = [weight.data_ptr() for weight in (*tokenizer.parameters(), *transformer.parameters())]
    pipe.generate([1])
    pipe.to("meta")
    assert all(weight.is_meta for weight in weights(pipe).values())
    after = weights(Pipeline(tokenizer, transformer))
    assert [weight.data_ptr() for weight in (*tokenizer.parameters(), *transformer.parameters())] == places
    assert all(
        tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]) for name, tensor in after.items()
    )
    assert all(weight.requires_grad for weight in (*tokenizer.parameters(), *transformer.parameters()))


def test_pipelines_that_share_a_transformer_do_not_disturb_each_other(
    make_tokenizer: Make, make_transformer: Make
) -> None:
    """Each draws the tokens, and shows the precision, that it draws and shows alone, whichever is made first."""
    labels: list[int | str] = [0, 1, 2, 3, 4, 5]
    alone = {
        precision: Pipeline(make_tokenizer(), make_transformer(), precision=precision).generate(labels)
        for precision in ("fp32", "bf16")
    }
    assert not torch.equal(alone["fp32"].images, alone["bf16"].images)
    for order in (("fp32", "bf16"), ("bf16", "fp32")):
        models = make_tokenizer(), make_transformer()
        pipes = {precision: Pipeline(*models, precision=precision) for precision in order}  # type: ignore[arg-type]
        for precision in (*order, *order):
            out = pipes[precision].generate(labels)
            assert torch.equal(out.tokens, alone[precision].tokens)
            assert torch.equal(out.images, alone[precision].images)


def test_float32_of_a_transformer_held_low_is_computed_in_float32(make_tokenizer: Make, make_transformer: Make) -> None:
    """With the values that it holds, as if they had been held in float32."""
    low, rounded = make_transformer().lower_precision(torch.bfloat16), make_transformer()
    rounded.load_state_dict({name: weight.float() for name, weight in low.state_dict().items()})
    pipe = Pipeline(make_tokenizer(), low, precision="fp32")
    assert repr(pipe).endswith("in float32)")
    assert pipe.engine().transformer.compute_dtype == torch.float32
    expected = Pipeline(make_tokenizer(), rounded, precision="fp32").generate([0, 1, 2, 3, 4])
    assert torch.equal(pipe.generate([0, 1, 2, 3, 4]).images, expected.images)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def test_float32_means_float32_whatever_torch_is_told(pipe: Pipeline, images: Tensor, untouched: Make) -> None:
    """After `set_float32_matmul_precision`, too, which stays as it was: between steps, and after an exception."""
    given = pipe.tokenizer.decode(pipe.tokenizer.encode(images))
    expected = pipe.generate([0, 1, 2], smooth=True), pipe.reconstruct(to_unit(images))
    with products_in("medium"), untouched():
        assert torch.equal(pipe.tokenizer.decode(pipe.tokenizer.encode(images)), given)
        assert torch.equal(pipe.generate([0, 1, 2], smooth=True).images, expected[0].images)
        assert torch.equal(pipe.reconstruct(to_unit(images)), expected[1])
        for step in pipe.stream([0, 1, 2], smooth=True):
            assert torch.get_float32_matmul_precision() == "medium"
            last = step.preview()
        assert torch.equal(last, expected[0].images)
        with pytest.raises(InputError):
            pipe.tokenizer.decode(torch.full((1, 30), 99))


def test_bf16_paints_nearly_the_same_picture(make_tokenizer: Make, make_transformer: Make, pipe: Pipeline) -> None:
    """The decoder alone, on the same canvas: within 0.02 of 1 everywhere, but not equal."""
    low = Pipeline(make_tokenizer(), make_transformer(), precision="bf16")
    *_, last = pipe.tokenizer.quantizer.canvases(pipe.generate([1, 2, 3]).tokens)
    exact, lowered = pipe.show(last), low.show(last)
    assert 0 < (exact - lowered).abs().max() < 0.02


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shared", [False, True])
def test_saved_pipeline_is_loaded_bit_for_bit(
    make_tokenizer: Make, make_transformer: Make, tmp_path: Path, precision: Any, shared: bool
) -> None:
    """Every tensor in its format, both configs, the names; and it draws the same picture."""
    scales = Scales([1, (2, 1), (3, 2), (4, 6)])
    models = make_tokenizer(scales=scales), make_transformer(scales=scales, shared_modulation=shared)
    Pipeline(*models, classes=NAMES, precision="fp32").save(tmp_path / "held in float32")
    pipe = Pipeline.load(tmp_path / "held in float32", precision=precision)
    pipe.save(tmp_path)
    loaded = Pipeline.load(tmp_path, precision=precision)
    assert_same_weights(pipe, loaded)
    assert loaded.tokenizer.config == pipe.tokenizer.config
    assert loaded.transformer.config == pipe.transformer.config
    assert loaded.classes == pipe.classes == tuple(NAMES)
    before, after = pipe.generate(["bee", 5]), loaded.generate(["bee", 5])
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.images, after.images)


def test_float32_files_load_in_bf16_as_if_lowered_afterwards(
    make_tokenizer: Make, make_transformer: Make, saved: Path
) -> None:
    """Rounded once; and what is saved in bfloat16 loads in float32 with the rounded values."""
    low = Pipeline.load(saved, precision="bf16")
    assert_same_weights(low, Pipeline(make_tokenizer(), make_transformer().lower_precision(torch.bfloat16)))
    low.save(saved)
    high = Pipeline.load(saved, precision="fp32")
    assert all(tensor.dtype == torch.float32 for tensor in weights(high).values())
    for name, tensor in weights(low).items():
        assert torch.equal(weights(high)[name], tensor.float())


def test_pipeline_can_be_saved_over_the_directory_it_came_from(saved: Path) -> None:
    """Its weights are mapped from the very files that are replaced."""
    loaded, old = Pipeline.load(saved, precision="fp32"), Pipeline.load(saved, precision="fp32")
    with torch.no_grad():
        loaded.transformer.positions.add_(1.0)
    loaded.save(saved)
    assert_same_weights(Pipeline.load(saved, precision="fp32"), loaded)
    assert torch.equal(old.transformer.positions + 1.0, loaded.transformer.positions)


def test_tokenizer_of_a_pipeline_loads_alone(pipe: Pipeline, saved: Path) -> None:
    """From the same directory."""
    loaded = MultiScaleVQVAE.load(saved)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in pipe.tokenizer.state_dict().items())


def test_preset_follows_its_seed(untouched: Callable[[], Any]) -> None:
    """Same seed, same weights; another seed, others; classes are numbered."""
    with untouched():
        first, again, other = (Pipeline.from_preset("emoji-32", seed=seed, precision="fp32") for seed in (0, 0, 1))
    assert_same_weights(first, again)
    assert not torch.equal(weights(first)["transformer.head.weight"], weights(other)["transformer.head.weight"])
    assert first.classes == tuple("012345678")
    with pytest.raises(InputError, match="did you mean emoji-32"):
        Pipeline.from_preset("emoji-23")


BROKEN: dict[str, Callable[[Path], Any]] = {
    "expected a file .*transformer.safetensors, found none": lambda d: (d / "transformer.safetensors").unlink(),
    "expected a file .*tokenizer.safetensors, found none": lambda d: (d / "tokenizer.safetensors").unlink(),
    "expected a model directory with config.json": lambda d: (d / "config.json").unlink(),
    "transformer.safetensors: expected safetensors": lambda d: (d / "transformer.safetensors").write_bytes(b"12345"),
    "tokenizer.safetensors: expected safetensors": lambda d: cut(d / "tokenizer.safetensors"),
    "config.json: expected JSON": lambda d: cut(d / "config.json"),
    "expected classes to be a list of names, got 5": lambda d: change(d, "classes", 5),
    r"classes: expected 5 names, got 1": lambda d: change(d, "classes", ["ant"]),
    "classes: expected every name once, got 'ant' for 0 and 4": lambda d: change(d, "classes", [*NAMES[:4], "ant"]),
    "config of transformer: expected an object, got list": lambda d: change(d, "transformer", []),
    "config of transformer: depth: expected int, got '3'": lambda d: change(d, "transformer", "3", "depth"),
    r"weights do not fit the VAR: .* is not expected": lambda d: change(d, "transformer", 2, "depth"),
    "weights do not fit the VAR: .* is missing": lambda d: change(d, "transformer", 4, "depth"),
    "weights do not fit the MultiScaleVQVAE: .* should be": lambda d: change(d, "tokenizer", 64, "channels"),
    "tokenizer.safetensors: expected the weights that config.json was written with, got those": lambda d: swap(d),
    "weights do not fit the MultiScaleVQVAE: ": lambda d: swap(as_before(d)),
}


def as_before(directory: Path) -> Path:
    """As earlier versions wrote a model: without checksums and their fingerprints."""
    for name in ("tokenizer", "transformer"):
        path = directory / f"{name}.safetensors"
        safetensors.torch.save_file({key: value.clone() for key, value in checkpoint.read_tensors(path).items()}, path)
    config = json.loads((directory / "config.json").read_text())
    del config["weights"]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(directory: Path, section: str, value: Any, field: str | None = None) -> None:
    path = directory / "config.json"
    values = json.loads(path.read_text())
    if field:
        values[section][field] = value
    else:
        values[section] = value
    path.write_text(json.dumps(values))


def swap(directory: Path) -> None:
    a, b = directory / "tokenizer.safetensors", directory / "transformer.safetensors"
    held = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(held)


@pytest.mark.parametrize("complaint", BROKEN)
def test_broken_directory_is_one_line(saved: Path, complaint: str) -> None:
    """That names the file, the field or the tensor."""
    BROKEN[complaint](saved)
    with pytest.raises(InputError, match=complaint) as caught:
        Pipeline.load(saved)
    assert "\n" not in str(caught.value)


def test_models_of_earlier_versions_load(pipe: Pipeline, saved: Path) -> None:
    """Which have no checksums."""
    assert_same_weights(Pipeline.load(as_before(saved), precision="fp32"), pipe)
    assert_same_weights(Pipeline.load(saved, precision="fp32"), pipe)


@pytest.mark.parametrize("name", ["tokenizer", "transformer"])
def test_files_of_two_models_are_not_taken_for_one(
    make_tokenizer: Make, make_transformer: Make, saved: Path, tmp_path: Path, name: str
) -> None:
    """Of the same shapes, even; whichever is another's, whoever loads it."""
    other = Pipeline(make_tokenizer(), make_transformer(), precision="fp32")
    with torch.no_grad():
        other.tokenizer.decoder.head.bias[0] += 1
        other.transformer.head.bias[0] += 1
    other.save(tmp_path / "other")
    (saved / f"{name}.safetensors").write_bytes((tmp_path / "other" / f"{name}.safetensors").read_bytes())
    told = rf"{name}\.safetensors: expected the weights that config\.json was written with, got those"
    for load in (Pipeline.load, MultiScaleVQVAE.load if name == "tokenizer" else VAR.load):
        with pytest.raises(InputError, match=told):
            load(saved)  # type: ignore[operator]
    for load in (VAR.load if name == "tokenizer" else MultiScaleVQVAE.load,):
        load(saved)  # whose own file is the right one


def marks(pipe: Pipeline) -> tuple[float, float]:
    """A value of each model."""
    return pipe.tokenizer.decoder.head.bias[0].item(), pipe.transformer.head.bias[0].item()


def test_a_save_that_is_killed_leaves_the_old_model_or_the_new(
    make_tokenizer: Make, make_transformer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any call that changes names: never parts of both; the next save leaves the three files alone."""
    old, new = (Pipeline(make_tokenizer(), make_transformer(), precision="fp32") for _ in range(2))
    with torch.no_grad():
        new.tokenizer.decoder.head.bias[0] += 1
        new.transformer.head.bias[0] += 1
    replace, left, found = os.replace, 0, list[tuple[float, float]]()

    def killed(source: Any, target: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    for calls in range(6):
        old.save(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == FILES
        left = calls
        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(os, "replace", killed)
            patched.setattr(checkpoint, "_remove_left", lambda *given: None)  # nor does a killed process tidy up
            new.save(tmp_path)
        found.append(marks(Pipeline.load(tmp_path, precision="fp32")))
    assert found == [marks(old)] * 3 + [marks(new)] * 3
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_save_removes_nothing_that_it_did_not_write(pipe: Pipeline, tmp_path: Path) -> None:
    """A user's file of such a name stays; what a killed save has left goes."""
    (tmp_path / "tokenizer.0123456789abcdef.safetensors").write_bytes(b"mine")
    (tmp_path / "tokenizer.best.safetensors").write_bytes(b"mine too")
    pipe.save(tmp_path / "other")
    print_of = json.loads((tmp_path / "other" / "config.json").read_text())["weights"]["tokenizer.safetensors"]
    renamed = tmp_path / f"tokenizer.{print_of[::-1]}.safetensors"  # ours, but not under its own name
    renamed.write_bytes((tmp_path / "other" / "tokenizer.safetensors").read_bytes())
    before = {path.name for path in tmp_path.iterdir()}
    (tmp_path / ".nextscale-0123456789abcdef-1-1").mkdir()
    (tmp_path / ".nextscale-0123456789abcdef-1-1" / "tokenizer.safetensors").write_bytes(b"half")
    pipe.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before | FILES


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_flipped_bit_is_found(saved: Path, precision: Any) -> None:
    """In any tensor, which is named; also where it is converted."""
    generator = random.Random(0)
    for name in ("tokenizer", "transformer"):
        path = saved / f"{name}.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        tensors = [key for key in header if key != "__metadata__"]
        for tensor in generator.sample(tensors, 4):
            start, stop = header[tensor]["data_offsets"]
            damaged = bytearray(content)
            damaged[8 + length + generator.randrange(start, stop)] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(
                InputError, match=rf"{name}\.safetensors: expected {tensor} as it was written, got other"
            ):
                Pipeline.load(saved, precision=precision)
        path.write_bytes(content)


def test_the_transformer_is_saved_and_loaded_alone(transformer: VAR, saved: Path, tmp_path: Path) -> None:
    """From a pipeline's directory or its own, bit for bit, on a device, its blocks in a precision."""
    transformer.save(tmp_path / "alone")
    for directory in (saved, tmp_path / "alone"):
        loaded = VAR.load(directory)
        assert loaded.config == transformer.config
        assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in loaded.parameters())
        for name, tensor in transformer.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    low = VAR.load(saved, precision="bf16")
    assert low.compute_dtype == torch.bfloat16
    assert low.head.weight.dtype == torch.float32
    with pytest.raises(InputError, match=r"alone: expected a model with a tokenizer"):
        Pipeline.load(tmp_path / "alone")
    with pytest.raises(InputError, match="device: expected auto, cpu, or an accelerator that is there, got tpu9"):
        VAR.load(saved, device="tpu9")
    with pytest.raises(InputError, match="device: expected auto, cpu, or an accelerator that is there, got tpu9"):
        MultiScaleVQVAE.load(saved, device="tpu9")


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(InputError, match="expected a model directory, found none at"):
        Pipeline.load(tmp_path / "nowhere")


def test_models_that_do_not_belong_together_are_refused(tokenizer: MultiScaleVQVAE, make_transformer: Make) -> None:
    """With every difference."""
    with pytest.raises(InputError, match="do not belong together: codebook_size 64 and 65$"):
        Pipeline(tokenizer, make_transformer(codebook_size=65))


def test_public_names_are_the_real_ones() -> None:
    """Imported on first use, and nothing else pretends to be there."""
    import nextscale

    assert nextscale.VAR is VAR
    assert nextscale.Pipeline is Pipeline
    assert all(getattr(nextscale, name) is not None for name in nextscale.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = nextscale.Nothing
