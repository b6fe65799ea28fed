"""Checkpoints of the public release load whole or not at all, and go back bit for bit."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from parity import golden
from torch import Tensor

from nextscale import InputError, MultiScaleVQVAE, Pipeline, Scales, cli, official
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.release import files as release_files
from nextscale.transformer import VAR, KeyValueCache

PYRAMIDS = {
    "one scale": Scales([3]),
    "two scales": Scales([1, 4]),
    "no single token": Scales([2, 3, 5, 6]),
    "seven scales": Scales([1, 1, 2, 3, 4, 5, 6]),
    "rectangles": Scales([1, (1, 2), (2, 4), (3, 6)]),
}
PHIS = {"shared by all": ("all", 1), "four": ("partial", 4), "three": ("partial", 3), "one each": ("none", None)}
PHIS["left out"] = ("partial", 0)
BLOCKS = {  # shared modulation, normalized attention, heads, width
    "plain": (False, False, 3, 33),
    "plain, heads of 64": (False, False, 2, 128),
    "normalized": (False, True, 4, 20),
    "normalized and shared": (True, True, 1, 12),
    "plain and shared": (True, False, 5, 25),
}


def small(scales: Scales, phi: str = "four", blocks: str = "normalized") -> tuple[TokenizerConfig, TransformerConfig]:
    """A pair of models that differs from the golden one wherever it can."""
    sharing, count = PHIS[phi]
    shared, normalized, heads, width = BLOCKS[blocks]
    tokenizer = dataclasses.replace(
        golden.TOKENIZER,
        scales=scales,
        codebook_size=20,
        code_channels=5,
        multipliers=(1, 2, 1),
        residual_blocks=1,
        phi_sharing=sharing,
        phi_count=len(scales) if count is None else count,
    )
    transformer = TransformerConfig(
        scales=scales,
        codebook_size=20,
        code_channels=5,
        classes=3,
        depth=3,
        width=width,
        heads=heads,
        feed_forward=24,
        normalized_attention=normalized,
        shared_modulation=shared,
    )
    return tokenizer, transformer


def random_pair(scales: Scales, phi: str = "four", blocks: str = "normalized") -> Pipeline:
    """Every tensor different from every other, in float32."""
    tokenizer, transformer = small(scales, phi, blocks)
    pipe = Pipeline(MultiScaleVQVAE(tokenizer), VAR(transformer), precision="fp32")
    generator = torch.Generator().manual_seed(0)
    for model in (pipe.tokenizer, pipe.transformer):
        for tensor in model.state_dict().values():
            tensor.normal_(std=0.3, generator=generator)
    return pipe


def reload(pipe: Pipeline) -> Pipeline:
    """Through the release's format, with all that tensors cannot tell."""
    config = pipe.transformer.config
    return official.load(*official.export(pipe), scales=config.scales, num_heads=config.heads, precision="fp32")


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def assert_same_pipeline(one: Pipeline, other: Pipeline) -> None:
    assert one.tokenizer.config == other.tokenizer.config
    assert one.transformer.config == other.transformer.config
    assert_same(one.tokenizer.state_dict(), other.tokenizer.state_dict())
    assert_same(one.transformer.state_dict(), other.transformer.state_dict())


# -- names, shapes, both directions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "vae", "var"),
    [
        ("var-d16", "vae_ch160v4096z32", "var_d16"),
        ("var-d20", "vae_ch160v4096z32", "var_d20"),
        ("var-d24", "vae_ch160v4096z32", "var_d24"),
        ("var-d30", "vae_ch160v4096z32", "var_d30"),
        ("var-d36-512", "vae_ch160v4096z32_512px", "var_d36"),
    ],
)
def test_presets_have_the_names_and_shapes_of_the_release_s_files(preset, vae, var):
    """Exported without a single weight, on the meta device."""
    pipe = Pipeline.from_preset(preset, device="meta")
    for state, file in zip(official.export(pipe), (vae, var), strict=True):
        expected = golden.CHECKPOINTS[file]
        assert {name: list(tensor.shape) for name, tensor in state.items()} == expected["tensors"]
        assert all(tensor.is_meta for tensor in state.values())
    assert sum(p.numel() for p in pipe.transformer.parameters()) == golden.CHECKPOINTS[var]["parameters"]
    assert sum(p.numel() for p in pipe.tokenizer.parameters()) == golden.CHECKPOINTS[vae]["parameters"]


def test_exporting_what_was_loaded_gives_back_every_bit():
    """Buffers too, though they are made anew."""
    states = golden.states()
    for given, back in zip(states, official.export(official.load(*states, precision="fp32")), strict=True):
        assert_same(given, back)


def test_the_configuration_is_read_off_the_tensors():
    """Nothing but two state dicts, and both configurations are there."""
    pipe = golden.pipeline()
    assert (pipe.tokenizer.config, pipe.transformer.config) == (golden.TOKENIZER, golden.TRANSFORMER)


@pytest.mark.slow
@pytest.mark.parametrize("scales", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize("phi", PHIS)
def test_every_sharing_of_phi_survives_the_way_there_and_back(scales, phi):
    """load(export(x)) is x, and export(load(y)) is y."""
    pipe = random_pair(scales, phi)
    again = reload(pipe)
    assert_same_pipeline(pipe, again)
    for ours, theirs in zip(official.export(pipe), official.export(again), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_every_kind_of_block_survives_the_way_there_and_back(blocks):
    """load(export(x)) is x, and it predicts the same."""
    pipe = random_pair(PYRAMIDS["two scales"], blocks=blocks)
    again = reload(pipe)
    assert_same_pipeline(pipe, again)
    labels, tokens = torch.tensor([0, 3]), torch.arange(34).view(2, 17) % 20
    inputs = pipe.tokenizer.teacher_inputs(tokens)
    assert torch.equal(pipe.transformer(labels, inputs), again.transformer(labels, inputs))
    assert torch.equal(pipe.tokenizer.decode(tokens), again.tokenizer.decode(tokens))


@pytest.mark.parametrize("scales", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize("blocks", BLOCKS)
@torch.no_grad()
def test_scale_by_scale_with_a_cache_gives_the_logits_of_teacher_forcing(scales, blocks):
    """The step that samples and the forward that trains are one function, for every kind of block."""
    pipe = reload(random_pair(scales, blocks=blocks))
    labels = torch.tensor([1, 3])
    tokens = torch.randint(20, (2, scales.total), generator=torch.Generator().manual_seed(0))
    inputs = pipe.tokenizer.teacher_inputs(tokens)
    condition = pipe.transformer.condition(labels)
    cache = KeyValueCache(pipe.transformer.config, 2, dtype=torch.float32, device=pipe.device)
    steps = [pipe.transformer.step(0, None, condition, cache)]
    for k, part in enumerate(scales.slices()[1:], start=1):
        first = part.start - scales.lengths[0]
        codes = inputs[:, first : first + scales.lengths[k]]
        steps.append(pipe.transformer.step(k, codes, condition, cache))
    torch.testing.assert_close(torch.cat(steps, dim=1), pipe.transformer(labels, inputs), rtol=1e-4, atol=1e-5)


def test_cosine_distance_is_an_argument_because_no_tensor_tells_it():
    """The default is the release's Euclidean distance."""
    states = golden.states()
    assert official.load(*states, precision="fp32").tokenizer.config.distance == "euclidean"
    assert official.load(*states, distance="cosine", precision="fp32").tokenizer.config.distance == "cosine"


# -- precision, ownership, memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_in_half_precision_are_widened(dtype):
    """Weights become the float32 of what the file says; the mask's -inf and the level table survive."""
    vae, var = ({n: t.to(dtype) for n, t in state.items()} for state in golden.states())
    pipe = official.load(vae, var, precision="fp32")
    for given, back in zip((vae, var), official.export(pipe), strict=True):
        assert_same({name: tensor.to(back[name].dtype) for name, tensor in given.items()}, back)


def test_a_lower_precision_rounds_the_blocks_alone():
    """Embeddings, head and tokenizer stay float32; the export is float32 again, with the rounded values."""
    vae, var = golden.states()
    pipe = official.load(vae, var, precision="bf16")
    assert pipe.transformer.compute_dtype == torch.bfloat16
    back_vae, back_var = official.export(pipe)
    assert_same(vae, back_vae)
    rounded = {n: t.bfloat16().float() if n.startswith("blocks.") else t for n, t in var.items()}
    assert_same(rounded, back_var)
    assert_same_pipeline(pipe, official.load(back_vae, back_var, precision="bf16"))


def test_the_given_state_dict_and_the_model_do_not_share_memory():
    """Training a loaded model changes nothing of the user's."""
    states, copies = golden.states(), golden.states()
    pipe = official.load(*states, precision="fp32")
    with torch.no_grad():
        for model in (pipe.tokenizer, pipe.transformer):
            for tensor in model.state_dict().values():
                tensor.add_(1)
    for given, copy in zip(states, copies, strict=True):
        assert_same(given, copy)


def test_parameters_of_a_living_model_load_too():
    """A state dict may hold parameters that want gradients; nothing of their graph comes along."""
    vae, var = ({name: torch.nn.Parameter(t, t.is_floating_point()) for name, t in s.items()} for s in golden.states())
    pipe = official.load(vae, var, precision="fp32")
    assert_same_pipeline(pipe, golden.pipeline())
    tensors = [
        *pipe.tokenizer.state_dict(keep_vars=True).values(),
        *pipe.transformer.state_dict(keep_vars=True).values(),
    ]
    assert all(tensor.is_leaf for tensor in tensors)


def test_loading_leaves_the_globals_of_torch_alone(tmp_path):
    """Default type and device, threads, gradients, the random stream."""

    def globals_of_torch() -> tuple[object, ...]:
        state = torch.get_rng_state().tolist()
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            state,
            torch.nn.init.normal_,
        )

    before = globals_of_torch()
    official.load(*golden.states(), precision="bf16")
    assert globals_of_torch() == before


# -- files -------------------------------------------------------------------------------------------------------------


def write(folder: Path, suffix: str) -> tuple[Path, Path]:
    files = folder / f"vae{suffix}", folder / f"var{suffix}"
    for file, state in zip(files, golden.states(), strict=True):
        release_files.write(file, state)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_files_load_as_state_dicts_do(tmp_path, suffix, precision):
    """And saving what was loaded over the file it is mapped from harms neither."""
    files = write(tmp_path, suffix)
    pipe = official.load(*files, precision=precision)
    assert_same_pipeline(pipe, official.load(*golden.states(), precision=precision))
    for file, state in zip(files, official.export(pipe), strict=True):
        release_files.write(file, state)
    assert_same_pipeline(pipe, official.load(*map(str, files), precision=precision))


def test_training_a_mapped_model_leaves_its_file_alone(tmp_path):
    """The mapping is private: pages written to are copied."""
    files = write(tmp_path, ".pth")
    before = [file.read_bytes() for file in files]
    pipe = official.load(*files, precision="fp32")
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.add_(1)
    assert [file.read_bytes() for file in files] == before


def test_a_written_file_holds_the_weights_and_no_more(tmp_path):
    """Also when they are mapped from a larger file."""
    vae, var = write(tmp_path, ".safetensors")
    out = tmp_path / "out.pth"
    release_files.write(out, official.export(official.load(vae, var, precision="fp32"))[1])
    assert out.stat().st_size < 1.5 * var.stat().st_size


def test_torch_s_older_file_format_loads_too(tmp_path):
    """It cannot be mapped; it is read whole."""
    files = tmp_path / "vae.pth", tmp_path / "var.pth"
    for file, state in zip(files, golden.states(), strict=True):
        torch.save(state, file, _use_new_zipfile_serialization=False)
    assert_same_pipeline(golden.pipeline(), official.load(*files, precision="fp32"))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_release_s_trainer_writes_both_models_into_one_file(tmp_path, prefix):
    """That file serves for either, whatever wrapped the models when they were saved."""
    vae, var = golden.states()
    models = {"vae_local": vae, "var_wo_ddp": {f"{prefix}{name}": tensor for name, tensor in var.items()}}
    config = {"patch_nums": (1, 2, 3, 4), "label_smooth": 0.0}
    values = {
        "epoch": 3,
        "iter": 5,
        "trainer": {"config": config, **models, "var_opt": {"state": {}}},
        "args": {"bs": 8},
    }
    file = tmp_path / "ar-ckpt-last.pth"
    torch.save(values, file)
    assert_same_pipeline(golden.pipeline(), official.load(file, file, precision="fp32"))
    assert_same_pipeline(golden.pipeline(), official.load(vae, values, precision="fp32"))


# -- mistakes ----------------------------------------------------------------------------------------------------------


def complaint(vae, var, **options) -> str:
    """The one line that `load` says."""
    with pytest.raises(InputError) as caught:
        official.load(vae, var, precision="fp32", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_left_over_missing_or_misshapen_are_named():
    """All of them at once, under the release's names."""
    vae, var = golden.states()
    var["blocks.1.attn.extra"] = torch.zeros(3)
    var["pos_1LC"] = var["pos_1LC"][:, 1:]
    del var["blocks.0.ffn.fc2.bias"]
    said = complaint(vae, var)
    assert "blocks.1.attn.extra is not expected" in said
    assert "pos_1LC should be (1, 30, 128), is (1, 29, 128)" in said
    assert "blocks.0.ffn.fc2.bias is missing" in said


@pytest.mark.parametrize(
    "name",
    ["encoder.mid.attn_1.qkv.bias", "decoder.up.4.attn.2.proj_out.weight", "quantize.quant_resi.qresi_ls.3.bias"],
)
def test_a_tokenizer_that_lacks_a_tensor_is_refused(name):
    """Whichever it is."""
    vae, var = golden.states()
    del vae[name]
    assert f"{name} is missing" in complaint(vae, var)


@pytest.mark.parametrize(
    "name", ["word_embed.weight", "lvl_1L", "head.weight", "class_emb.weight", "blocks.0.ffn.fc1.weight", "pos_start"]
)
def test_a_transformer_that_lacks_a_tensor_is_refused(name):
    """Also one that the configuration is read from."""
    vae, var = golden.states()
    del var[name]
    assert name in complaint(vae, var)


@pytest.mark.parametrize(
    ("name", "value"), [("attn_bias_for_masking", 1.0), ("blocks.1.attn.zero_k_bias", 0.5), ("lvl_1L", 2)]
)
def test_a_buffer_that_contradicts_the_architecture_is_refused(name, value):
    """A learned key bias, another mask: a model that we would not compute."""
    vae, var = golden.states()
    var[name].view(-1)[0] = value
    assert name in complaint(vae, var)


def test_models_that_do_not_belong_together_are_refused():
    """Other channels, another codebook: every difference is named."""
    var = golden.states()[1]
    other = official.export(random_pair(Scales([1, 2, 3, 4])))
    assert "code_channels 5 and 16" in complaint(other[0], var)
    assert "codebook_size 20 and 128" in complaint(other[0], var)


def test_exchanged_arguments_are_told():
    """The tokenizer comes first."""
    vae, var = golden.states()
    assert "expected a transformer of the release, got the other model" in complaint(var, vae)
    assert "expected a tokenizer of the release, got the other model" in complaint(var, var)


def test_what_tensors_do_not_tell_is_asked_for():
    """The sides of maps that are no squares, the heads of plain attention."""
    vae, var = official.export(random_pair(PYRAMIDS["rectangles"], blocks="plain"))
    assert "scales: expected the sides of every map" in complaint(vae, var, num_heads=3)
    assert "num_heads: expected a number" in complaint(vae, var, scales=PYRAMIDS["rectangles"])
    assert "scales: expected maps of 1, 2, 8, 18 tokens" in complaint(vae, var, num_heads=3, scales=[1, 2, 3, 4])
    assert "divisor of the width 33" in complaint(vae, var, num_heads=2, scales=PYRAMIDS["rectangles"])


def test_a_number_of_heads_that_the_tensors_contradict_is_refused():
    """The learned scales are one a head."""
    assert "num_heads: expected 2" in complaint(*golden.states(), num_heads=4)


class Dangerous:
    """Runs code when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def broken_files(folder: Path) -> dict[str, Path]:
    vae_pth, vae_safetensors = write(folder, ".pth")[0], write(folder, ".safetensors")[0]
    files = {
        kind: folder / f"{kind}.pth" for kind in ("text", "empty", "truncated", "dangerous", "dangerous zip", "list")
    }
    files["truncated safetensors"] = folder / "truncated.safetensors"
    files["text"].write_text("<html>404 not found</html>\n" * 100)
    files["empty"].write_bytes(b"")
    files["truncated"].write_bytes(vae_pth.read_bytes()[:100_000])
    files["dangerous"].write_bytes(pickle.dumps({"a": Dangerous(folder / "owned")}))
    torch.save({"a": Dangerous(folder / "owned")}, files["dangerous zip"])
    torch.save([1, 2, 3], files["list"])
    files["truncated safetensors"].write_bytes(vae_safetensors.read_bytes()[:100_000])
    files["missing"], files["folder"] = folder / "missing.pth", folder
    return files


def test_a_broken_file_is_one_line_and_runs_nothing(tmp_path):
    """Truncated, empty, a text, a list, a pickle with a call in it, a folder, nothing at all."""
    vae, var = write(tmp_path, ".pth")
    for kind, file in broken_files(tmp_path).items():
        assert str(file) in complaint(file, var), kind
        assert str(file) in complaint(vae, file), kind
    assert not (tmp_path / "owned").exists()


def test_a_pickle_that_would_run_code_says_which(tmp_path):
    """So that nobody is tempted to load it otherwise."""
    assert "posix.mkdir, which was not run" in complaint(broken_files(tmp_path)["dangerous zip"], golden.states()[1])


@pytest.mark.parametrize("values", [{}, {"trainer": {"var_wo_ddp": {}}}, {"epoch": 3}, {"a": 1, "b": [2]}])
def test_a_mapping_without_the_model_is_refused(values):
    """A trainer's checkpoint of the other model, numbers instead of tensors."""
    assert "expected" in complaint(values, golden.states()[1])


def test_names_that_collide_without_their_wrappers_are_refused():
    """Rather than one of the two silently winning."""
    vae, var = golden.states()
    var["module.pos_start"] = var["pos_start"]
    assert "every tensor once" in complaint(vae, var)


@pytest.mark.slow
def test_the_page_about_the_release_is_kept(tmp_path, monkeypatch):
    """Its Python runs, on the small model under the release's names, and its commands are ones the program has."""
    page = (Path(__file__).parents[2] / "docs" / "release.md").read_text(encoding="utf-8")
    for file, state in zip(("vae_ch160v4096z32.pth", "var_d16.pth"), golden.states(), strict=True):
        release_files.write(tmp_path / file, state)
    monkeypatch.chdir(tmp_path)
    exec("".join(re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)), {})
    for line in re.findall(r"^nextscale .*$", page, flags=re.MULTILINE):
        assert cli.parse(shlex.split(line)[1:]) is not None


def test_safetensors_of_both_models_are_plain(tmp_path):
    """Anybody's loader reads them."""
    for file, state in zip(write(tmp_path, ".safetensors"), golden.states(), strict=True):
        assert_same(safetensors.torch.load_file(file), state)
