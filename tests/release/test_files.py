"""Laws of finding a model in what trainers write: by the names that it must have, whatever stands around them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import golden
from release.test_convert import assert_same_pipeline, complaint
from torch import Tensor, nn

from nextscale import InputError, Pipeline, Scales, official

State = dict[str, Any]


def load(vae: Any, var: Any, **options: Any) -> Pipeline:
    return official.load(vae, var, precision="fp32", **options)


def prefixed(prefix: str, state: Mapping[str, Any]) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def shifted(state: Mapping[str, Tensor]) -> State:
    """Other weights of the same names: what must not be taken."""
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


# -- wrappings ---------------------------------------------------------------------------------------------------------

WRAPPINGS: dict[str, Callable[[State, State], Any]] = {
    "Lightning": lambda vae, var: {"state_dict": {**prefixed("vae.", vae), **prefixed("var.", var)}, "epoch": 3},
    "a container each": lambda vae, var: {"model": var, "first_stage_model": {"net": vae}, "optimizer": {"state": {}}},
    "any container": lambda vae, var: {"stuff": {"generator": {"weights": var}}, "module": vae},
    "DDP and compile": lambda vae, var: {
        "vae": prefixed("_orig_mod.", vae),
        "var": prefixed("module._orig_mod.", var),
    },
    "FSDP with activation checkpointing": lambda vae, var: {
        "vae": vae,
        "var": {
            name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): tensor
            for name, tensor in prefixed("_fsdp_wrapped_module.", var).items()
        },
    },
    "an average by torch": lambda vae, var: {
        "vae": vae,
        "var": {"n_averaged": torch.tensor(7), **prefixed("module.", var)},
    },
    "an average by torch inside Lightning": lambda vae, var: {
        "state_dict": {"avg.n_averaged": torch.tensor(7), **prefixed("avg.module.", {**var, **prefixed("vae.", vae)})}
    },
    "one model's names inside the other's": lambda vae, var: {**var, **prefixed("vae_proxy.0.", vae)},
    "a tuple": lambda vae, var: {"models": (vae, var, 7)},
    "the release's trainer": lambda vae, var: {"trainer": {"vae_local": vae, "var_wo_ddp": var, "config": {"a": 1}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_model_is_found_whatever_is_wrapped_around_it(wrapping: str, tmp_path: Path) -> None:
    """In memory and in a file; what is found is the model, bit for bit."""
    values = WRAPPINGS[wrapping](*golden.states())
    torch.save(values, tmp_path / "checkpoint.pt")
    for source in (values, tmp_path / "checkpoint.pt"):
        assert_same_pipeline(load(source, source), golden.pipeline())


def test_containers_in_a_circle_are_looked_into_once() -> None:
    """And those too deep not at all, without recursion."""
    vae, var = golden.states()
    values: State = {"model": var}
    values["self"] = [values]
    deep: State = {}
    inner = deep
    for _ in range(100_000):
        inner["x"] = inner = {}
    values["deep"] = deep
    assert_same_pipeline(load(vae, values), golden.pipeline())


def test_tensors_of_neither_model_are_told() -> None:
    """A discriminator beside the tokenizer, say; nothing is left out in silence."""
    vae, var = golden.states()
    values = {**prefixed("ae.", vae), "loss.head.weight": torch.zeros(2), "loss.head.bias": torch.zeros(2)}
    with pytest.warns(UserWarning, match=r"tensors beside the tokenizer \(ae\) are left out, 2 of them: loss$"):
        load(values, var)


def test_two_models_of_one_kind_are_told_apart_by_the_user() -> None:
    """Rather than one of the two silently winning."""
    vae, var = golden.states()
    said = complaint(vae, {"last": var, "best": shifted(var)})
    assert "expected one transformer, got 2" in said
    assert "last" in said
    assert "best" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "model_ema", "ema_model", "state_dict_ema", "EMA"])
def test_a_running_average_is_taken_when_it_is_asked_for(name: str) -> None:
    """Otherwise the plain weights are, and it is told that there is an average."""
    vae, var = golden.states()
    values = {"model": shifted(var), name: var}
    assert_same_pipeline(load({"model": shifted(vae), name: vae}, values, weights="ema"), golden.pipeline())
    with pytest.warns(UserWarning, match=rf"plain weights are taken; weights='ema' takes .*\({name}\)"):
        assert_same_pipeline(load(vae, {"model": var, name: shifted(var)}), golden.pipeline())


@pytest.mark.slow
def test_weights_that_are_their_own_average_are_both() -> None:
    """Of a model that has not learned yet one state dict may stand under both names; a third name changes nothing."""
    vae, var = golden.states()
    for values in ({"model": var, "ema": var}, {"ema": var, "model": var}, {"best": var, "ema": var, "model": var}):
        with pytest.warns(UserWarning, match="plain weights are taken; weights='ema' takes"):
            assert_same_pipeline(load(vae, values), golden.pipeline())
        with pytest.warns(UserWarning, match="has no running average"):  # of the tokenizer
            assert_same_pipeline(load(vae, values, weights="ema"), golden.pipeline())


def test_an_average_that_is_not_there_is_told() -> None:
    """Of one of the two models as a remark, of both as a mistake; an average alone has to be asked for."""
    vae, var = golden.states()
    with pytest.warns(UserWarning, match="has no running average"):
        assert_same_pipeline(load(vae, {"ema": var}, weights="ema"), golden.pipeline())
    with warnings.catch_warnings(action="ignore"):
        assert "expected running averages (ema)" in complaint(vae, var, weights="ema")
    assert "got a running average alone (ema): weights='ema' takes it" in complaint(vae, {"ema": var})
    assert "weights: expected plain or ema, got 'swa'" in complaint(vae, var, weights="swa")


# -- what lies beside the tensors --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_side_data_of_numpy_and_argparse_is_no_obstacle(tmp_path: Path) -> None:
    """Counters, paths, an argparse.Namespace: nothing of them is made, and the tensors are read."""
    vae, var = golden.states()
    side = {
        "epoch": np.int64(3),
        "loss": np.float64(0.5),
        "figures": np.zeros(3),
        "args": argparse.Namespace(lr=1e-4, out=Path("runs"), best=np.float32(2)),
    }
    torch.save({"model": var, **side}, tmp_path / "var.pth")
    torch.save({**vae, "epoch": np.int64(3)}, tmp_path / "vae.pth")
    assert_same_pipeline(load(tmp_path / "vae.pth", tmp_path / "var.pth"), golden.pipeline())


STRANGE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "array": (lambda t: t.numpy(), "expected tensors only, got a NumPy array: head.weight"),
    "list": (lambda t: t.tolist(), "expected tensors only, got a list: head.weight"),
    "sparse": (lambda t: t.to_sparse(), "got one of layout sparse_coo: head.weight"),
    "meta": (lambda t: t.to("meta"), "got a shape alone, on the meta device: head.weight"),
    "repeating": (lambda t: t[:1, :1].clone().expand(t.shape), "got one that repeats its values: head.weight"),
    "subclass": (lambda t: t.as_subclass(type("Cut", (Tensor,), {})), "got a Cut: head.weight"),
    "complex": (lambda t: t.to(torch.complex64), "head.weight should be floating point, is torch.complex64"),
    "integer": (lambda t: t.to(torch.int8), "head.weight should be floating point, is torch.int8"),
    "none": (lambda t: None, "expected tensors only, got a NoneType: head.weight"),
}


@pytest.mark.parametrize(
    "source", [None, 3, [1], torch.zeros(2), nn.Linear(2, 2)], ids=lambda value: type(value).__name__
)
def test_what_is_neither_file_nor_state_dict_is_told(source: Any) -> None:
    """A model instead of its state dict, say."""
    said = complaint(source, golden.states()[1])
    assert f"expected a file or a state dict, got a {type(source).__name__}" in said
    assert said.endswith("whose state_dict() is one") is isinstance(source, nn.Module)


@pytest.mark.parametrize("kind", STRANGE)
def test_a_weight_that_is_no_plain_tensor_is_named(kind: str) -> None:
    """What it is, and which."""
    (vae, var), (change, said) = golden.states(), STRANGE[kind]
    assert said in complaint(vae, {**var, "head.weight": change(var["head.weight"])})


def test_parameters_and_transposed_tensors_are_plain() -> None:
    """A view that is as large as its storage."""
    vae, var = golden.states()
    var["head.weight"] = nn.Parameter(var["head.weight"].T.contiguous().T)
    assert_same_pipeline(load(vae, var), golden.pipeline())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_weights_that_are_not_finite_are_named_as_the_release_does(value: float, dtype: torch.dtype) -> None:
    """The first of them, in either model."""
    vae, var = golden.states()
    var["head.weight"] = var["head.weight"].to(dtype)
    var["head.weight"][3, 5] = value
    assert "expected finite numbers, got head.weight with values" in complaint(vae, var)
    vae["quant_conv.bias"][0] = value
    assert "expected finite numbers, got quant_conv.bias with values" in complaint(vae, golden.states()[1])


def test_numbers_too_large_for_float32_are_not_finite_there() -> None:
    """What a float64 checkpoint may hold."""
    vae, var = golden.states()
    var["head.bias"] = var["head.bias"].double()
    var["head.bias"][0] = 1e300
    assert "expected finite numbers, got head.bias" in complaint(vae, var)


def test_numbers_too_large_for_the_precision_asked_for_are_told_with_it() -> None:
    """They are finite in the file."""
    vae, var = golden.states()
    var["blocks.0.ffn.fc1.weight"][0, 0] = 1e30
    with pytest.raises(InputError, match=r"got blocks.0.ffn.fc1.weight with values that are not, in float16"):
        official.load(vae, var, precision="fp16")


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    """And it is not missing."""
    assert f"expected a file {tmp_path}, got a folder" in complaint(tmp_path, golden.states()[1])


def test_blocks_that_are_counted_in_another_way_are_told() -> None:
    """Rather than what is missing because of it."""
    vae, var = golden.states()
    moved = {name.replace("blocks.0.", "blocks.7."): tensor for name, tensor in var.items()}
    assert complaint(vae, moved).endswith("got weights without blocks.0.attn.proj.weight")


def test_finite_numbers_whose_sum_is_not_are_finite() -> None:
    """The sum is only a quick look."""
    vae, var = golden.states()
    var["head.bias"][:] = 3e38
    assert torch.equal(load(vae, var).transformer.head.bias, var["head.bias"])


# -- what may be missing -----------------------------------------------------------------------------------------------


def test_buffers_that_the_architecture_determines_may_be_missing() -> None:
    """Each and all of them, where the scales are told."""
    vae, var = golden.states()
    for name in ("attn_bias_for_masking", "blocks.0.attn.zero_k_bias", "blocks.1.attn.zero_k_bias"):
        del var[name]
    assert_same_pipeline(load(vae, var), golden.pipeline())
    del var["lvl_1L"]
    assert_same_pipeline(load(vae, var, scales=golden.SCALES), golden.pipeline())
    assert "expected the sides of 4 maps of 30 tokens together" in complaint(vae, var)
    assert "expected 4 maps of 30 tokens together, got 1 2 3" in complaint(vae, var, scales=[1, 2, 3])


def test_the_release_s_scales_are_known_without_their_table() -> None:
    """By their number and that of the tokens, which is told."""
    scales = Scales([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
    vae, var = golden.states()
    del var["lvl_1L"], var["attn_bias_for_masking"]
    vae["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 128)
    var |= {"pos_1LC": torch.zeros(1, 680, 128), "lvl_embed.weight": torch.zeros(10, 128)}
    with pytest.warns(UserWarning, match=r"lvl_1L is missing\): using 1 2 3 4 5 6 8 10 13 16, as var-d16 has"):
        assert load(vae, var).transformer.config.scales == scales


@pytest.mark.parametrize("maps", [None, 3, 7])
def test_hits_may_be_missing_or_of_other_scales(maps: int | None) -> None:
    """They begin at zero, which is told: nothing else depends on them."""
    vae, var = golden.states()
    vae.pop("quantize.ema_vocab_hit_SV")
    vae |= {} if maps is None else {"quantize.ema_vocab_hit_SV": torch.ones(maps, 128)}
    with pytest.warns(UserWarning, match=rf"of 4 scales, got {'none' if maps is None else f'those of {maps}'}"):
        pipe = load(vae, var)
    assert not pipe.tokenizer.quantizer.hits_KV.any()
    assert torch.equal(pipe.generate([1], [0]).tokens, golden.pipeline().generate([1], [0]).tokens)


# -- a tokenizer alone -------------------------------------------------------------------------------------------------


def test_a_tokenizer_alone_is_a_tokenizer() -> None:
    """With the scales told, or those of the transformer in the same file; its weights are those of the pair."""
    (vae, var), whole = golden.states(), golden.pipeline().tokenizer
    for tokenizer in (
        official.load_tokenizer(vae, scales=golden.SCALES),
        official.load_tokenizer(vae, scales=[1, 2, 3, (4, 4)]),
        official.load_tokenizer({"trainer": {"vae_local": vae, "var_wo_ddp": var}}),
    ):
        assert tokenizer.config == whole.config
        assert all(torch.equal(a, b) for a, b in zip(tokenizer.parameters(), whole.parameters(), strict=True))


def test_ten_scales_are_the_release_s() -> None:
    """Of 256 px, which is told; others can be told, and any other number has to be."""
    vae = golden.states()[0]
    with pytest.raises(InputError, match=r"expected scales= \(--scales\) with the 4 token maps"):
        official.load_tokenizer(vae)
    vae["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 128)
    with pytest.warns(UserWarning, match="using 1 2 3 4 5 6 8 10 13 16, the release's for 256 px"):
        tokenizer = official.load_tokenizer(vae)
    assert (tokenizer.config.height, tokenizer.config.width) == (256, 256)
    wide = official.load_tokenizer(vae, scales=[1, 1, 1, 1, 1, 2, 2, 3, 3, (4, 6)])
    assert (wide.config.height, wide.config.width) == (64, 96)


def test_what_is_no_tokenizer_is_told() -> None:
    """The transformer, or anything else."""
    for source, said in [
        (golden.states()[1], "expected a tokenizer of the release, got the other model"),
        ({"a.weight": torch.zeros(2)}, r"got weights without quantize.embedding.weight \(a.weight"),
        ({"epoch": 3}, "expected a state dict or a trainer's checkpoint of a tokenizer, got neither"),
    ]:
        with pytest.raises(InputError, match=said):
            official.load_tokenizer(source)
