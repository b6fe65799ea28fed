"""The public release's checkpoints to ours and back: one table of names, used in both directions.

Everything that tensors can tell is read off them; what they cannot tell is an argument of `load`. A tensor left over,
missing, of another shape, or a buffer that is not what the architecture makes of it, is an `InputError` that names it.
Buffers that the architecture determines, and counts of hits, may be missing. What trainers wrap around the tensors is
known to `release.files`; a file that holds both models may be given for either.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nextscale import presets
from nextscale.checks import checked
from nextscale.config import TokenizerConfig, TransformerConfig, check_pair
from nextscale.errors import InputError
from nextscale.files import checkpoint
from nextscale.machine.precision import SamplingPrecision, find_arithmetic, find_device
from nextscale.pipeline import Pipeline
from nextscale.release import files
from nextscale.release.files import State, Weights
from nextscale.scales import Scales
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.transformer import VAR

Table = tuple[tuple[str, str], ...]
Sizes = Scales | Iterable[int | Iterable[int]]
HITS = "quantize.ema_vocab_hit_SV"  # how often each scale took each code; nothing is computed from them
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
    ("quantizer.hits_KV",                      HITS),
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


# -- the doors ---------------------------------------------------------------------------------------------------------


def load(
    vae: str | Path | State,
    var: str | Path | State,
    *,
    num_heads: int | None = None,
    scales: Sizes | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    weights: Weights = "plain",
    device: str | torch.device = "cpu",
    precision: SamplingPrecision = "auto",
) -> Pipeline:
    """A tokenizer and a transformer in the release's format, as a `Pipeline`.

    Arguments:
        vae, var: a .pth or .safetensors file, a state dict, or what a trainer wraps around it (`release.files`); one
            file may hold both. Files are mapped and stay so where nothing has to be converted; state dicts are copied,
            never changed.
        num_heads: of attention without learned scales, which say it otherwise; there, None means heads of 64 channels.
        scales: the token maps, if they are not all squares: the tensors tell how many tokens each has, not its sides.
        distance: what "nearest code" means; the release's models are Euclidean.
        weights: "ema" takes running averages of the weights where the files have them.
        device, precision: as for `Pipeline`. In float32 `export` gives back every bit; in a lower precision the blocks
            are rounded to it on the way in.

    Raises `InputError`, naming the tensors, for files that are damaged or hold code, and for models that are not whole,
    not the release's, or do not belong together.
    """
    read_var, read_vae = files.Source(var, "transformer", weights), files.Source(vae, "tokenizer", weights)
    if weights == "ema" and not (read_vae.place.averaged or read_var.place.averaged):
        raise InputError(f"weights: expected running averages (ema) in {read_var.what}, got plain weights alone")
    device = find_device(device)
    transformer_config = _transformer_config(read_var(), num_heads, scales)
    tokenizer_config = _tokenizer_config(read_vae(), transformer_config.scales, distance)
    check_pair(tokenizer_config, transformer_config)
    tokenizer = MultiScaleVQVAE(tokenizer_config, seed=None)
    transformer = VAR(transformer_config, seed=None).lower_precision(find_arithmetic(precision, device).dtype)
    _fill(tokenizer, read_vae, device, copy=isinstance(vae, Mapping))
    _fill(transformer, read_var, device, copy=isinstance(var, Mapping))
    return Pipeline(tokenizer, transformer, device=device, precision=precision)


def load_tokenizer(
    vae: str | Path | State,
    *,
    scales: Sizes | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    weights: Weights = "plain",
) -> MultiScaleVQVAE:
    """A tokenizer alone, in the release's format, on the CPU. Arguments and errors as of `load`.

    Its tensors do not tell the token maps. Without `scales` they are those of the transformer in the same file, or the
    release's for 256 px where hits of ten scales were counted, which is said.
    """
    read = files.Source(vae, "tokenizer", weights)
    if weights == "ema" and not read.place.averaged:
        raise InputError(f"weights: expected a running average (ema) in {read.what}, got plain weights alone")
    tokenizer = MultiScaleVQVAE(_tokenizer_config(read(), _maps(vae, read, scales), distance), seed=None)
    _fill(tokenizer, read, checkpoint.CPU, copy=isinstance(vae, Mapping))
    return tokenizer


@checked
def export(pipe: Pipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The exact reverse of `load`: two state dicts, all names, shapes and dtypes the release's.

    Like any state dict they share the memory of the weights, unless those are held in a lower precision than float32.
    What tensors cannot hold is lost: class names, and what the arguments of `load` say.
    """
    return exported(pipe.tokenizer), exported(pipe.transformer)


# -- names and shapes --------------------------------------------------------------------------------------------------


def names(model: MultiScaleVQVAE | VAR) -> dict[str, str]:
    """Our name -> the release's, of every tensor in the model's state dict. Raises `InputError` for another model."""
    if not isinstance(model, MultiScaleVQVAE | VAR):
        raise InputError(f"model: expected MultiScaleVQVAE or VAR, got {type(model).__name__}")
    if isinstance(model, VAR):
        if model.order != "scale":
            raise InputError(f"expected a next-scale transformer, as the release's are, got one of order {model.order}")
        if model.config.groups:
            told = f"groups {', '.join(map(str, model.config.groups))}"
            raise InputError(f"expected a head over all codes, as the release's format holds, got {told}")
        if model.config.options:
            told = ", ".join(f"{name} {value}" for name, value in model.config.options.items())
            raise InputError(f"expected a transformer built as the release's are, got one with {told}")
        return {name: _rename(name, TRANSFORMER_NAMES, 0) for name in model.state_dict()}
    if model.config.quantizer != "codebook" or model.config.reparametrised:
        kind = "reparametrised codes" if model.config.reparametrised else f"quantizer {model.config.quantizer}"
        raise InputError(f"expected a tokenizer with a plain codebook, as the release's format holds, got {kind}")
    table = (*TOKENIZER_NAMES, PHI_NAMES[model.config.phi_sharing])
    return {name: _rename(name, table, len(model.config.multipliers) - 1) for name in model.state_dict()}


def _rename(name: str, table: Table, last: int) -> str:
    for ours, theirs in table:
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", ours.replace(".", r"\."))
        if match := re.fullmatch(rf"{pattern}(?P<rest>\..+)?", name):
            counted = {key: value or "" for key, value in match.groupdict().items()}
            return theirs.format_map({**counted, "-i": last - int(counted.get("i", 0))}) + counted["rest"]
    raise AssertionError(f"{name} is in no row of the table")


def _buffer_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """What the release stores although the architecture determines it."""
    total = config.scales.total
    zeros = {f"blocks.{i}.attn.zero_k_bias": (config.width,) for i in range(config.depth)}
    return {"lvl_1L": (1, total), "attn_bias_for_masking": (1, 1, total, total), **zeros}


def _buffer(name: str, config: TransformerConfig, device: torch.device) -> Tensor:
    """One of them."""
    if name == "lvl_1L":
        return config.scales.level_ids().to(device)[None]
    shape = _buffer_shapes(config)[name]
    buffer = torch.zeros(shape, dtype=torch.float32, device=device)
    if name == "attn_bias_for_masking":
        buffer.masked_fill_(~config.scales.block_causal_mask().to(device), -torch.inf)
    return buffer


def exported(model: MultiScaleVQVAE | VAR) -> dict[str, Tensor]:
    """One model as the release's state dict. Raises `InputError` for a transformer that reads text."""
    if isinstance(model, VAR) and model.config.text is not None:
        raise InputError("expected a transformer of classes alone, as the release's are, got one that reads text")
    state, renamed = model.state_dict(), names(model)
    tensors = {renamed[name]: _to_theirs(renamed[name], tensor.detach().float()) for name, tensor in state.items()}
    if isinstance(model, VAR):
        device = model.positions.device
        tensors |= {name: _buffer(name, model.config, device) for name in _buffer_shapes(model.config)}
    return tensors


def _to_theirs(name: str, tensor: Tensor) -> Tensor:
    """One scale a head is (H, 1, 1) here and (1, H, 1, 1) there."""
    return tensor[None] if name.endswith("scale_mul_1H11") else tensor


def _to_ours(name: str, tensor: Tensor) -> Tensor:
    return tensor[0] if name.endswith("scale_mul_1H11") else tensor


def _fill(model: MultiScaleVQVAE | VAR, read: files.Source, device: torch.device, *, copy: bool) -> None:
    """Give `model`, on the meta device, the release's weights after checking them against it."""
    renamed, tensors = names(model), read()
    expected = {renamed[name]: _to_theirs(renamed[name], tensor) for name, tensor in model.state_dict().items()}
    if isinstance(model, VAR):
        expected |= _buffers_there(model.config, tensors)
        added: dict[str, Tensor] = {}
    else:
        added = _hits(model, read.what, tensors)
    checkpoint.check_fit(type(model).__name__, expected, tensors | added)
    if isinstance(model, VAR):
        _check_buffers(model.config, tensors)

    def ours() -> dict[str, Tensor]:
        theirs = read() | added
        return {name: _to_ours(renamed[name], theirs[renamed[name]]) for name in renamed}

    del tensors
    checkpoint.assign(model, ours, device=device, copy=copy, called=renamed)


def _buffers_there(config: TransformerConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shapes of those buffers that a checkpoint has; they may be missing."""
    shapes = {name: shape for name, shape in _buffer_shapes(config).items() if name in tensors}
    return {name: torch.empty(shape, dtype=torch.int64, device="meta") for name, shape in shapes.items()}


def _check_buffers(config: TransformerConfig, tensors: Mapping[str, Tensor]) -> None:
    for name in _buffers_there(config, tensors):
        buffer = _buffer(name, config, checkpoint.CPU)
        if not torch.equal(tensors[name].to(buffer), buffer):
            raise InputError(f"weights do not fit the VAR: {name} is not what its scales make it")


def _hits(model: MultiScaleVQVAE, what: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros, which is said, where the counts of hits are missing or of another number of scales."""
    config, hits = model.config, tensors.get(HITS)
    if hits is not None and (hits.ndim != 2 or len(hits) == len(config.scales)):
        return {}
    got = "none" if hits is None else f"those of {len(hits)}"
    warnings.warn(
        f"{what}: expected counts of hits ({HITS}) of {len(config.scales)} scales, got {got}: they begin at zero, and "
        "nothing else depends on them",
        stacklevel=4,
    )
    return {HITS: torch.zeros(len(config.scales), config.codebook_size)}


# -- configurations, read off the tensors ------------------------------------------------------------------------------


class _Tensors:
    """Tensors by name and number of dimensions; asking for what is not there is the user's mistake."""

    def __init__(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        self.what, self.tensors = what, tensors

    def __call__(self, name: str, dimensions: int) -> Tensor:
        if name not in self.tensors:
            raise InputError(f"expected a {self.what} of the release, got weights without {name}")
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


@checked
def _transformer_config(
    tensors: Mapping[str, Tensor], num_heads: int | None, scales: Sizes | None
) -> TransformerConfig:
    get = _Tensors("transformer", tensors)
    get("blocks.0.attn.proj.weight", 2)  # else there is a part of a model, or blocks are counted in another way
    width, code_channels = get("word_embed.weight", 2).shape
    told = "blocks.0.attn.scale_mul_1H11"
    return TransformerConfig(
        scales=_scales(get, scales),
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
        raise InputError(
            f"num_heads: expected a number, as no tensor of this transformer (width {width}) determines it"
        )
    return width // HEAD_DIM


def _scales(get: _Tensors, given: Sizes | None) -> Scales:
    """From the level of every position: how many tokens each scale has; squares unless `given` says otherwise."""
    told = None if given is None else Scales.of(given)
    if "lvl_1L" not in get.tensors:
        return _scales_by_count(get, told)
    lengths = _lengths(get("lvl_1L", 2))
    if told is not None:
        if told.lengths != lengths:
            raise InputError(f"scales: expected maps of {', '.join(map(str, lengths[:40]))} tokens, got {told}")
        return told
    odd = [length for length in lengths if isqrt(length) ** 2 != length]
    if odd:
        raise InputError(
            f"scales: expected the sides of every map, as {odd[0]} tokens are no square and no tensor stores them"
        )
    return Scales([isqrt(length) for length in lengths])


def _lengths(level_1L: Tensor) -> tuple[int, ...]:
    """Tokens of each scale. Raises `InputError` for levels that are not 0, 1, 2 ..."""
    levels, counts = torch.unique_consecutive(level_1L.flatten().long(), return_counts=True)
    if not torch.equal(levels, torch.arange(len(levels), device=levels.device)):
        raise InputError(f"transformer: expected levels 0, 1, 2 ... in lvl_1L, got {levels.tolist()[:12]}")
    return tuple(counts.tolist())


def _scales_by_count(get: _Tensors, told: Scales | None) -> Scales:
    """Without the level of every position there is the number of scales and of all tokens: the release's, or given."""
    maps, total = get("lvl_embed.weight", 2).shape[0], get("pos_1LC", 3).shape[1]
    if told is not None:
        if (len(told), told.total) != (maps, total):
            raise InputError(f"scales: expected {maps} maps of {total} tokens together, got {told}")
        return told
    for name in presets.names():
        scales = presets.get(name).transformer.scales
        if name.startswith("var-") and (len(scales), scales.total) == (maps, total):
            warnings.warn(
                f"no tensor stores the scales (lvl_1L is missing): using {scales}, as {name} has", stacklevel=4
            )
            return scales
    raise InputError(
        f"scales: expected the sides of {maps} maps of {total} tokens together; lvl_1L, with them, is missing"
    )


def _maps(vae: str | Path | State, read: files.Source, given: Sizes | None) -> Scales:
    """The token maps of a tokenizer alone: given, or those of the transformer in its file, or the release's."""
    if given is not None:
        return Scales.of(given)
    if files.holds(vae, "transformer"):
        return _scales(_Tensors("transformer", files.Source(vae, "transformer")()), None)
    hits, release = read().get(HITS), presets.get("var-d16").tokenizer.scales
    maps = len(hits) if hits is not None and hits.ndim == 2 else None
    if maps == len(release):
        warnings.warn(
            f"{read.what}: no tensor stores the scales: using {release}, the release's for 256 px; scales= (--scales) "
            "tells others",
            stacklevel=3,
        )
        return release
    counted = "" if maps is None else f"{maps} "
    raise InputError(
        f"{read.what}: expected scales= (--scales) with the {counted}token maps, such as 1 2 3 4x6, as no tensor of a "
        "tokenizer tells their sides, got none"
    )


def _tokenizer_config(
    tensors: Mapping[str, Tensor], scales: Scales, distance: Literal["euclidean", "cosine"]
) -> TokenizerConfig:
    get = _Tensors("tokenizer", tensors)
    codebook_size, code_channels = get("quantize.embedding.weight", 2).shape
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
