"""The public release's checkpoints to ours and back: one table of names, used in both directions.

Everything that tensors can tell is read off them; what they cannot tell is an argument of `load`. A tensor left over,
missing, of another shape, or a buffer that is not what the architecture makes of it, is an `InputError` that names it.
The release's own trainer nests both models in one file; that file may be given for either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nextscale.config import TokenizerConfig, TransformerConfig, check_pair
from nextscale.errors import InputError
from nextscale.files import checkpoint
from nextscale.machine.precision import Precision, find_device, find_dtype
from nextscale.pipeline import Pipeline
from nextscale.release import files
from nextscale.release.files import State
from nextscale.scales import Scales
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.transformer import VAR

Table = tuple[tuple[str, str], ...]
HEAD_DIM = 64  # of every model of the release, where no scale tensor tells the number of heads

# fmt: off
#    ours                                      the release's; {-i} counts {i} from the other end
TOKENIZER_NAMES: Table = (
    ("{side}.stem",                            "{side}.conv_in"),
    ("{side}.middle.0",                        "{side}.mid.block_1"),
    ("{side}.middle.1.out",                    "{side}.mid.attn_1.proj_out"),
    ("{side}.middle.1",                        "{side}.mid.attn_1"),
    ("{side}.middle.2",                        "{side}.mid.block_2"),
    ("{side}.norm",                            "{side}.norm_out"),
    ("{side}.head",                            "{side}.conv_out"),
    ("encoder.levels.{i}.blocks.{j}.shortcut", "encoder.down.{i}.block.{j}.nin_shortcut"),
    ("encoder.levels.{i}.blocks.{j}",          "encoder.down.{i}.block.{j}"),
    ("encoder.levels.{i}.attentions.{j}.out",  "encoder.down.{i}.attn.{j}.proj_out"),
    ("encoder.levels.{i}.attentions.{j}",      "encoder.down.{i}.attn.{j}"),
    ("encoder.levels.{i}.resample",            "encoder.down.{i}.downsample"),
    ("decoder.levels.{i}.blocks.{j}.shortcut", "decoder.up.{-i}.block.{j}.nin_shortcut"),
    ("decoder.levels.{i}.blocks.{j}",          "decoder.up.{-i}.block.{j}"),
    ("decoder.levels.{i}.attentions.{j}.out",  "decoder.up.{-i}.attn.{j}.proj_out"),
    ("decoder.levels.{i}.attentions.{j}",      "decoder.up.{-i}.attn.{j}"),
    ("decoder.levels.{i}.resample",            "decoder.up.{-i}.upsample"),
    ("pre_quantizer",                          "quant_conv"),
    ("post_quantizer",                         "post_quant_conv"),
    ("quantizer.codebook",                     "quantize.embedding"),
    ("quantizer.hits_KV",                      "quantize.ema_vocab_hit_SV"),
)
PHI_NAMES: dict[str, tuple[str, str]] = {
    "all":     ("quantizer.phis.0",            "quantize.quant_resi.qresi"),
    "partial": ("quantizer.phis.{i}",          "quantize.quant_resi.qresi_ls.{i}"),
    "none":    ("quantizer.phis.{i}",          "quantize.quant_resi.{i}"),
}
TRANSFORMER_NAMES: Table = (
    ("class_embedding",                        "class_emb"),
    ("start",                                  "pos_start"),
    ("code_projection",                        "word_embed"),
    ("positions",                              "pos_1LC"),
    ("levels",                                 "lvl_embed"),
    ("shared_modulation",                      "shared_ada_lin.1"),
    ("blocks.{i}.modulation_table",            "blocks.{i}.ada_gss"),
    ("blocks.{i}.modulation",                  "blocks.{i}.ada_lin.1"),
    ("blocks.{i}.attention.qkv",               "blocks.{i}.attn.mat_qkv"),
    ("blocks.{i}.attention.q_bias",            "blocks.{i}.attn.q_bias"),
    ("blocks.{i}.attention.v_bias",            "blocks.{i}.attn.v_bias"),
    ("blocks.{i}.attention.temperature",       "blocks.{i}.attn.scale_mul_1H11"),
    ("blocks.{i}.attention.out",               "blocks.{i}.attn.proj"),
    ("blocks.{i}.feed_forward.up",             "blocks.{i}.ffn.fc1"),
    ("blocks.{i}.feed_forward.down",           "blocks.{i}.ffn.fc2"),
    ("head_modulation",                        "head_nm.ada_lin.1"),
    ("head",                                   "head"),
)
# fmt: on


# -- the two doors -----------------------------------------------------------------------------------------------------


def load(
    vae: str | Path | State,
    var: str | Path | State,
    *,
    num_heads: int | None = None,
    scales: Scales | Iterable[int | Iterable[int]] | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
) -> Pipeline:
    """A tokenizer and a transformer in the release's format, as a `Pipeline`.

    Arguments:
        vae, var: a .pth or .safetensors file, a state dict, or a checkpoint of the release's trainer, which holds both.
            Files are mapped and stay so where nothing has to be converted; state dicts are copied, never changed.
        num_heads: of attention without learned scales, which say it otherwise; there, None means heads of 64 channels.
        scales: the token maps, if they are not all squares: the tensors tell how many tokens each has, not its sides.
        distance: what "nearest code" means; the release's models are Euclidean.
        device, precision: as for `Pipeline`. In float32 `export` gives back every bit; in a lower precision the blocks
            are rounded to it on the way in.

    Raises `InputError`, naming the tensors, for files that are damaged or hold code, and for models that are not whole,
    not the release's, or do not belong together.
    """
    read_vae, read_var = files.reader(vae, "vae_local"), files.reader(var, "var_wo_ddp")
    device = find_device(device)
    transformer_config = _transformer_config(read_var(), num_heads, scales)
    tokenizer_config = _tokenizer_config(read_vae(), transformer_config.scales, distance)
    check_pair(tokenizer_config, transformer_config)
    tokenizer = MultiScaleVQVAE(tokenizer_config, seed=None)
    transformer = VAR(transformer_config, seed=None).lower_precision(find_dtype(precision, device))
    _fill(tokenizer, read_vae, device, copy=isinstance(vae, Mapping))
    _fill(transformer, read_var, device, copy=isinstance(var, Mapping))
    return Pipeline(tokenizer, transformer, device=device, precision=precision)


def export(pipe: Pipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The exact reverse of `load`: two state dicts, all names, shapes and dtypes the release's.

    Like any state dict they share the memory of the weights, unless those are held in a lower precision than float32.
    What tensors cannot hold is lost: class names, and what the arguments of `load` say.
    """
    return _export(pipe.tokenizer), _export(pipe.transformer)


# -- names and shapes --------------------------------------------------------------------------------------------------


def names(model: MultiScaleVQVAE | VAR) -> dict[str, str]:
    """Our name -> the release's, of every tensor in the model's state dict."""
    if isinstance(model, VAR):
        return {name: _rename(name, TRANSFORMER_NAMES, 0) for name in model.state_dict()}
    table = (*TOKENIZER_NAMES, PHI_NAMES[model.config.phi_sharing])
    return {name: _rename(name, table, len(model.config.multipliers) - 1) for name in model.state_dict()}


def _rename(name: str, table: Table, last: int) -> str:
    for ours, theirs in table:
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", ours.replace(".", r"\."))
        if match := re.fullmatch(rf"{pattern}(?P<rest>\..+)?", name):
            counted = {key: value or "" for key, value in match.groupdict().items()}
            return theirs.format_map({**counted, "-i": last - int(counted.get("i", 0))}) + counted["rest"]
    raise AssertionError(f"{name} is in no row of the table")


def _buffers(config: TransformerConfig, device: torch.device) -> dict[str, Tensor]:
    """What the release stores although the architecture determines it."""
    level_L = config.scales.level_ids().to(device)
    bias_LL = torch.zeros(config.scales.total, config.scales.total, dtype=torch.float32, device=device)
    bias_LL.masked_fill_(~config.scales.block_causal_mask().to(device), -torch.inf)
    zeros = {
        f"blocks.{i}.attn.zero_k_bias": torch.zeros(config.width, dtype=torch.float32, device=device)
        for i in range(config.depth)
    }
    return {"lvl_1L": level_L[None], "attn_bias_for_masking": bias_LL[None, None], **zeros}


def _export(model: MultiScaleVQVAE | VAR) -> dict[str, Tensor]:
    state, renamed = model.state_dict(), names(model)
    tensors = {renamed[name]: _to_theirs(renamed[name], tensor.detach().float()) for name, tensor in state.items()}
    if isinstance(model, VAR):
        tensors |= _buffers(model.config, model.positions.device)
    return tensors


def _to_theirs(name: str, tensor: Tensor) -> Tensor:
    """One scale a head is (H, 1, 1) here and (1, H, 1, 1) there."""
    return tensor[None] if name.endswith("scale_mul_1H11") else tensor


def _to_ours(name: str, tensor: Tensor) -> Tensor:
    return tensor[0] if name.endswith("scale_mul_1H11") else tensor


def _fill(model: MultiScaleVQVAE | VAR, read: checkpoint.Read, device: torch.device, *, copy: bool) -> None:
    """Give `model`, on the meta device, the release's weights after checking them against it."""
    renamed, tensors = names(model), read()
    buffers = _buffers(model.config, checkpoint.CPU) if isinstance(model, VAR) else {}
    expected = {renamed[name]: _to_theirs(renamed[name], tensor) for name, tensor in model.state_dict().items()}
    checkpoint.check_fit(type(model).__name__, expected | buffers, tensors)
    for name, buffer in buffers.items():
        if not torch.equal(tensors[name].to(buffer), buffer):
            raise InputError(f"weights do not fit the {type(model).__name__}: {name} is not what its scales make it")

    def ours() -> dict[str, Tensor]:
        theirs = read()
        return {name: _to_ours(renamed[name], theirs[renamed[name]]) for name in renamed}

    del tensors
    checkpoint.assign(model, ours, device=device, copy=copy)


# -- configurations, read off the tensors ------------------------------------------------------------------------------


class _Tensors:
    """Tensors by name and number of dimensions; asking for what is not there is the user's mistake."""

    def __init__(self, what: str, tensors: Mapping[str, Tensor], other: str) -> None:
        self.what, self.tensors, self.other = what, tensors, other

    def __call__(self, name: str, dimensions: int) -> Tensor:
        if name not in self.tensors:
            got = "the other model of the pair" if self.other in self.tensors else f"weights without {name}"
            raise InputError(f"expected a {self.what} of the release, got {got}")
        tensor = self.tensors[name]
        if tensor.ndim != dimensions:
            raise InputError(
                f"{self.what}: expected {dimensions} dimensions of {name}, got shape {tuple(tensor.shape)}"
            )
        return tensor

    def count(self, pattern: str) -> int:
        """How many different words stand where `pattern` has its group."""
        found = (re.match(pattern, name) for name in self.tensors)
        return len({match[1] for match in found if match})


def _transformer_config(
    tensors: Mapping[str, Tensor], num_heads: int | None, scales: Scales | Iterable[int | Iterable[int]] | None
) -> TransformerConfig:
    get = _Tensors("transformer", tensors, "quantize.embedding.weight")
    width, code_channels = get("word_embed.weight", 2).shape
    told = "blocks.0.attn.scale_mul_1H11"
    return TransformerConfig(
        scales=_scales(get("lvl_1L", 2), scales),
        codebook_size=get("head.weight", 2).shape[0],
        code_channels=code_channels,
        classes=get("class_emb.weight", 2).shape[0] - 1,
        depth=get.count(r"blocks\.(\d+)\."),
        width=width,
        heads=_heads(width, get(told, 4).shape[1] if told in tensors else None, num_heads),
        feed_forward=get("blocks.0.ffn.fc1.weight", 2).shape[0],
        normalized_attention=told in tensors,
        shared_modulation="shared_ada_lin.1.weight" in tensors,
    )


def _heads(width: int, told: int | None, given: int | None) -> int:
    if told is not None and given not in (None, told):
        raise InputError(f"num_heads: expected {told}, as the transformer's scale tensors say, got {given}")
    if told is not None or given is not None:
        return told if told is not None else int(given or 0)
    if width % HEAD_DIM:
        raise InputError(f"num_heads: expected a number, as no tensor of this transformer (width {width}) tells it")
    return width // HEAD_DIM


def _scales(level_1L: Tensor, given: Scales | Iterable[int | Iterable[int]] | None) -> Scales:
    """From the level of every position: how many tokens each scale has; squares unless `given` says otherwise."""
    levels, counts = torch.unique_consecutive(level_1L.flatten().long(), return_counts=True)
    lengths = tuple(counts.tolist())
    if not torch.equal(levels, torch.arange(len(levels), device=levels.device)):
        raise InputError(f"transformer: expected levels 0, 1, 2 ... in lvl_1L, got {levels.tolist()[:12]}")
    if given is not None:
        scales = given if isinstance(given, Scales) else Scales(given)
        if scales.lengths != lengths:
            raise InputError(f"scales: expected maps of {', '.join(map(str, lengths))} tokens, got {scales}")
        return scales
    odd = [length for length in lengths if isqrt(length) ** 2 != length]
    if odd:
        raise InputError(
            f"scales: expected the sides of every map, as {odd[0]} tokens are no square and none tell them"
        )
    return Scales([isqrt(length) for length in lengths])


def _tokenizer_config(
    tensors: Mapping[str, Tensor], scales: Scales, distance: Literal["euclidean", "cosine"]
) -> TokenizerConfig:
    get = _Tensors("tokenizer", tensors, "lvl_1L")
    codebook_size, code_channels = get("quantize.embedding.weight", 2).shape
    maps = get("quantize.ema_vocab_hit_SV", 2).shape[0]
    if maps != len(scales):
        raise InputError(f"tokenizer and transformer do not belong together: {maps} and {len(scales)} scales")
    channels = get("encoder.conv_in.weight", 4).shape[0]
    levels = range(get.count(r"encoder\.down\.(\d+)\."))
    widths = [get(f"encoder.down.{i}.block.0.conv1.weight", 4).shape[0] for i in levels]
    if any(width % channels for width in widths):
        raise InputError(f"tokenizer: expected levels of a multiple of {channels} channels, got {widths}")
    phi_sharing, phi_count = _phis(get)
    return TokenizerConfig(
        scales=scales,
        codebook_size=codebook_size,
        code_channels=code_channels,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        residual_blocks=get.count(r"encoder\.down\.0\.block\.(\d+)\."),
        phi_sharing=phi_sharing,
        phi_count=phi_count,
        distance=distance,
    )


def _phis(get: _Tensors) -> tuple[Literal["all", "partial", "none"], int]:
    """The kind of sharing, by the names, and how many phis; no phi at all is the identity."""
    if get.count(r"quantize\.quant_resi\.(qresi)\."):
        return "all", 1
    if count := get.count(r"quantize\.quant_resi\.(\d+)\."):
        return "none", count
    return "partial", get.count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
