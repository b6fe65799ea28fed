"""VAR: the next-scale transformer. Predicts all tokens of a scale at once from class, text and all coarser scales.

It sees teacher inputs and gives logits: what a token looks like is the tokenizer's business, the choice is sampling's.
A head in groups (`TransformerConfig.groups`) predicts the digits of a token all at once, each with a softmax of its
own: V is then the sum of the groups' sizes.
Shapes: B batch, L positions, D width, C code channels, V codes.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.checks import checked
from nextscale.config import Order, TransformerConfig, from_json, to_json
from nextscale.errors import InputError
from nextscale.files import checkpoint
from nextscale.machine.precision import Precision, as_held, find_device, find_dtype
from nextscale.machine.shapes import shapes_alone
from nextscale.scales import Scales
from nextscale.text.encoder import Layer, TextEncoder
from nextscale.text.prompts import Prompts, check_prompts, no_text
from nextscale.transformer.attention import block_causal
from nextscale.transformer.cache import KeyValueCache
from nextscale.transformer.layers import Block, DropPath, Modulation, Words, linear, modulate

WEIGHTS = "transformer.safetensors"
Run = Callable[..., Tensor]
Inputs = Any
"""Teacher inputs (B, L - h_1*w_1, C); a subclass may look at something else."""


class Condition(NamedTuple):
    """All that class and text decide, computed once for all scales."""

    embedding: Tensor
    """(B, 1, D), added to the start tokens."""
    blocks: list[tuple[Modulation, Modulation]]
    """Modulations of each block."""
    head_scale: Tensor
    head_shift: Tensor
    """(B, 1, D) each, of the norm before the head."""
    words: list[Words | None]
    """What each block sees of the text."""

    def first(self, rows: int) -> Condition:
        """Of the first pictures alone."""
        blocks = [
            (Modulation(*(part[:rows] for part in one)), Modulation(*(part[:rows] for part in other)))
            for one, other in self.blocks
        ]
        words = [seen and Words(*(part[:rows] for part in seen)) for seen in self.words]
        return Condition(self.embedding[:rows], blocks, self.head_scale[:rows], self.head_shift[:rows], words)


class VAR(nn.Module):
    """The transformer (paper, section 3.1 and appendix).

    Arguments:
        config: the architecture, of this class's order, else `InputError`.
        seed: of the random weights. None leaves the weights on the meta device, for a state dict to be assigned to.
    """

    order: ClassVar[Order] = "scale"

    @checked
    def __init__(self, config: TransformerConfig, *, seed: int | None = 0) -> None:
        if config.order != self.order:
            name = type(self).__name__
            raise InputError(f"{name}: expected a transformer of order {self.order}, got one of order {config.order}")
        super().__init__()
        self.config, self.walk = config, config.walk
        width, scales = config.width, config.scales
        with shapes_alone():
            self.class_embedding = nn.Embedding(config.classes + 1, width)  # the last row: no class
            self.start = nn.Parameter(torch.empty(1, self.walk.lengths[0], width))
            self.code_projection = nn.Linear(config.code_channels, width)
            self.positions = nn.Parameter(torch.empty(1, scales.total, width))
            self.levels = nn.Embedding(len(scales), width)
            self.shared_modulation: nn.Linear | None = nn.Linear(width, 6 * width) if config.shared_modulation else None
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
            self.head_modulation = nn.Linear(width, 2 * width)
            self.head = nn.Linear(width, config.logits)
            self.text = None if config.text is None else TextEncoder(config.text)
            self.pooled_text = None if config.text is None else nn.Linear(config.text.width, width, bias=False)
            self.add_parts()
        self.float()  # whatever torch's default is
        if seed is not None:
            self.to_empty(device="cpu")
            initialize(self, torch.Generator().manual_seed(int(seed) % 2**63))

    def add_parts(self) -> None:
        """Modules that an order has besides these."""

    def forward(
        self,
        labels_B: Tensor,
        inputs_BLC: Tensor,
        *,
        prompts: Prompts | None = None,
        drop_path: DropPath | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Teacher forcing: logits of every position.

        Arguments:
            labels_B: (B,) int64 in 0 .. classes; `classes` means "no class".
            inputs_BLC: (B, L - h_1*w_1, C) float, from `MultiScaleVQVAE.teacher_inputs`; or of the first scales alone,
                for their logits alone.
            prompts: B of them, from a reader such as `text.vocabulary.Vocabulary`; None: no text.
            drop_path: stochastic depth, for training.
            reach: how many scales a token attends to, its own and those before it; None: to all so far.

        Returns (B, L, V) float32. Raises `InputError` for inputs of another shape or type, labels out of range, and
        prompts that the model cannot read.
        """
        self.check(labels_B, inputs_BLC)
        if prompts is not None and self.config.text is not None:  # without, `condition` refuses them
            check_prompts(prompts, self.config.text, len(labels_B))
        return self.through_head(self.hidden(labels_B, inputs_BLC, prompts=prompts, drop_path=drop_path, reach=reach))

    def check(self, labels_B: Tensor, inputs_BLC: Inputs) -> None:
        """Raise `InputError` for labels or inputs of another kind than `forward` takes."""
        check_given(labels_B, inputs_BLC, self.config.classes)

    def hidden(
        self,
        labels_B: Tensor,
        inputs_BLC: Inputs,
        *,
        prompts: Prompts | None = None,
        drop_path: DropPath | None = None,
        run: Run | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """What the head of `forward` takes: (B, L, D) float32, after the modulated norm. Arguments as `forward`'s.

        `run` is called with each block and its arguments, to run it in another way; nothing in it may be drawn.
        """
        return self.states(inputs_BLC, self.condition(labels_B, prompts), drop_path=drop_path, run=run, reach=reach)

    def states(
        self,
        inputs_BLC: Inputs,
        condition: Condition,
        *,
        drop_path: DropPath | None = None,
        run: Run | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """`hidden` under a condition that is there already, of the same B pictures."""
        x_BLD, scales = self.embedded(inputs_BLC, condition)
        look = block_causal(scales, x_BLD.device, reach)
        conditions = zip(self.blocks, condition.blocks, condition.words, strict=True)
        for i, (block, modulations, words) in enumerate(conditions):
            drop = drop_path.of_block(i, len(self.blocks)) if drop_path else None
            kept = tuple(branch._replace(gate=drop(branch.gate)) for branch in modulations) if drop else modulations
            arguments = (x_BLD, kept, _keep_none, look, words)
            x_BLD = run(block, *arguments) if run else block(*arguments)
        return self.before_head(x_BLD, condition)

    def step(self, k: int, codes_BlC: Tensor | None, condition: Condition, cache: KeyValueCache) -> Tensor:
        """Logits of scale k alone, (B, h_k*w_k, V) float32; `cache` holds the coarser scales and gains this one.

        Arguments:
            k: 0-based scale.
            codes_BlC: (B, h_k*w_k, C), the canvas pooled to this scale; None at k = 0.
            condition: from `condition`, of the same B pictures.
            cache: as the steps before left it.

        Raises `InputError` where a gradient would be needed: the cache is written in place. `forward` gives gradients.
        """
        x_BLD = self.embed_start(condition) if codes_BlC is None else self.embed_codes(codes_BlC, k, k + 1)
        if x_BLD.requires_grad:
            raise InputError(
                "VAR.step: expected torch.no_grad() or torch.inference_mode() around it, as its cache is written in "
                "place, got gradients switched on; VAR.forward gives gradients"
            )
        conditions = zip(self.blocks, condition.blocks, condition.words, strict=True)
        for i, (block, modulations, words) in enumerate(conditions):
            x_BLD = block(x_BLD, modulations, partial(cache.extend, i), None, words)
        cache.advance(x_BLD.shape[1])
        return self.through_head(self.before_head(x_BLD, condition))

    # -- the parts of forward and step ---------------------------------------------------------------------------------

    def condition(self, labels_B: Tensor, prompts: Prompts | None = None) -> Condition:
        """(B,) int64 labels, and B prompts (None: no text) -> everything they decide.

        Raises `InputError` for prompts where the model reads no text.
        """
        c_BD = self.class_embedding(labels_B)
        c_BD, words = self._with_text(c_BD, prompts)
        shared = self.shared_modulation
        six = shared(F.silu(c_BD).to(shared.weight.dtype)).unflatten(-1, (6, -1)).unsqueeze(1) if shared else None
        blocks = [cast(Block, block).modulations(c_BD, six) for block in self.blocks]
        with as_held(c_BD.device):
            scale, shift = self.head_modulation(F.silu(c_BD)).unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
        return Condition(c_BD.unsqueeze(1), blocks, scale, shift, words)

    def _with_text(self, c_BD: Tensor, prompts: Prompts | None) -> tuple[Tensor, list[Words | None]]:
        """The pooled text added to the class, and what each block sees of the states."""
        if self.text is None or self.pooled_text is None:
            if prompts is not None:
                raise InputError("prompts: expected none, since this model reads no text, got some")
            return c_BD, [None] * len(self.blocks)
        states, mask_BT, pooled_BW = self.text(prompts or no_text(self.text.config, len(c_BD), c_BD.device))
        with as_held(c_BD.device):
            c_BD = c_BD + self.pooled_text(pooled_BW.float())
        return c_BD, [cast(Block, block).text_keys(states, mask_BT) for block in self.blocks]

    def embedded(self, inputs_BLC: Inputs, condition: Condition) -> tuple[Tensor, Scales]:
        """What the blocks take, (B, L, D), and the maps that it is of, of which none looks at a later one."""
        scales = self._seen(len(condition.embedding), inputs_BLC)
        return torch.cat([self.embed_start(condition), self.embed_codes(inputs_BLC, 1, len(scales))], dim=1), scales

    def embed_start(self, condition: Condition) -> Tensor:
        """Class embedding + start position + position + level of the first scale, (B, h_1*w_1, D)."""
        return self._place(condition.embedding + self.start, 0, 1)

    def embed_codes(self, codes_BlC: Tensor, first: int, end: int) -> Tensor:
        """Linear(codes) + position + level, of scales first .. end - 1."""
        with as_held(codes_BlC.device):
            x_BlD = self.code_projection(codes_BlC.float())
        return self._place(x_BlD, first, end)

    def before_head(self, x_BLD: Tensor, condition: Condition) -> Tensor:
        """Modulated norm, in float32."""
        with as_held(x_BLD.device):
            return modulate(x_BLD.float(), condition.head_shift, condition.head_scale)

    def through_head(self, h_BLD: Tensor) -> Tensor:
        """The linear head, in the dtype it is held in, and the cap where there is one: (B, L, V) float32."""
        with as_held(h_BLD.device):
            logits_BLV = linear(h_BLD.to(self.head.weight.dtype), self.head.weight, self.head.bias).float()
        cap = self.config.logit_cap
        return cap * (logits_BLV / cap).tanh() if cap else logits_BLV

    def _place(self, x_BlD: Tensor, first: int, end: int) -> Tensor:
        """Add positions and levels of scales first .. end - 1; what the blocks compute in follows from here."""
        if first == end:
            return x_BlD
        scales = self.config.scales
        part = slice(scales.offsets[first], scales.offsets[first] + x_BlD.shape[1])
        # no table of level numbers: it would have to be copied to the device at every step
        levels = [self.levels.weight[k].expand(scales.lengths[k], -1) for k in range(first, end)]
        return (x_BlD + (self.positions[:, part] + torch.cat(levels))).to(self.compute_dtype)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the blocks compute in: what their weights are held in, but for those in int8."""
        return self.blocks[0].get_parameter("attention.q_bias").dtype

    def lower_precision(self, dtype: torch.dtype) -> VAR:
        """Hold the blocks and the text's layers in `dtype`, in place; embeddings and the head stay as they are."""
        self.blocks.to(dtype)
        if self.text is not None:
            self.text.layers.to(dtype)
        if self.shared_modulation is not None:
            self.shared_modulation.to(dtype)
        return self

    # -- files ---------------------------------------------------------------------------------------------------------

    @checked
    def save(self, directory: str | Path) -> None:
        """Write config.json and transformer.safetensors, as `load` reads them, to a directory of their own."""
        checkpoint.save(directory, {"transformer": to_json(self.config)}, {WEIGHTS: self.state_dict()})

    @classmethod
    @checked
    def load(cls, directory: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32") -> VAR:
        """The transformer of a run or a pipeline, or what `save` wrote, its blocks held in `precision`.

        Raises `InputError` when files are missing, damaged, or contradict each other.
        """
        sections, place = checkpoint.read_config(directory, ("transformer",)), find_device(device)
        config = from_json(TransformerConfig, sections["transformer"])
        weights = checkpoint.find_weights(Path(directory), WEIGHTS, sections)
        checkpoint.check_room(weights.path, parameters=config.parameters, blocks=config.depth)
        model = cls(config, seed=None).lower_precision(find_dtype(precision, place))
        checkpoint.load(model, weights, device=place)
        return model

    def _seen(self, batch: int, inputs_BLC: Tensor) -> Scales:
        """The maps that teacher inputs are of: all, or the first ones."""
        scales = self.walk
        for count, part in enumerate(scales.slices(), start=1):
            if inputs_BLC.shape == (batch, part.stop - scales.lengths[0], self.config.code_channels):
                return scales if count == len(scales) else Scales(scales.sizes[:count])
        expected = (batch, scales.total - scales.lengths[0], self.config.code_channels)
        raise InputError(f"teacher inputs: expected shape {expected}, got {tuple(inputs_BLC.shape)}")


def check_given(labels_B: Tensor, inputs_BLC: Tensor, classes: int) -> None:
    """Raise `InputError` unless labels are (B,) int64 in 0 .. classes, and inputs floats; shapes are `hidden`'s to say.

    Waits for the device: an accelerator that is asked for a class that there is not would be of no use from then on.
    """
    for name, tensor in (("labels", labels_B), ("teacher inputs", inputs_BLC)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: expected a tensor, got {reprlib.repr(tensor)}")
    if labels_B.ndim != 1 or labels_B.dtype != torch.int64 or not inputs_BLC.is_floating_point():
        got = f"{tuple(labels_B.shape)} {labels_B.dtype} and {inputs_BLC.dtype}"
        raise InputError(f"expected labels of shape (batch,) int64 and floats as teacher inputs, got {got}")
    if labels_B.is_meta or not labels_B.numel() or torch.compiler.is_compiling():
        return
    low, high = (int(end) for end in labels_B.aminmax())
    if not 0 <= low <= high <= classes:
        raise InputError(f"labels: expected 0 .. {classes} ({classes}: no class), got {low} .. {high}")


def _keep_none(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


@torch.no_grad()
def initialize(model: VAR, generator: torch.Generator) -> None:
    """The release's random weights : truncated normal, std sqrt(1 / (3 * width)); biases 0.

    Output projections are divided by sqrt(2 * depth), the head multiplied by 0.02, AdaLN by 0.5 but its gates by gamma.
    Of the text's parts the width is that of their inputs; what carries it to the pictures begins at 0.
    """
    config = model.config
    std = math.sqrt(1 / (3 * config.width))
    gamma = 1e-3 if config.depth <= 20 else 1e-4 if config.depth <= 24 else 1e-5 if config.depth <= 30 else 5e-6
    for name, parameter in model.named_parameters():
        if name.endswith("temperature"):
            parameter.fill_(math.log(4))
        elif name.endswith(("bias", "cross_attention.out.weight", "pooled_text.weight")):
            parameter.zero_()
        elif name.startswith("text.") or "text_keys" in name or "cross_attention" in name:
            nn.init.trunc_normal_(parameter, std=math.sqrt(1 / (3 * parameter.shape[-1])), generator=generator)
        elif name.endswith("modulation_table"):
            parameter.normal_(generator=generator).mul_(config.width**-0.5)
            parameter[:, :, 2:].mul_(0.5)
            parameter[:, :, :2].mul_(gamma)
        else:
            nn.init.trunc_normal_(parameter, std=std, generator=generator)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention.out.weight.div_(math.sqrt(2 * config.depth))
        block.feed_forward.down.weight.div_(math.sqrt(2 * config.depth))
        if not config.shared_modulation:
            block.modulation.weight[2 * config.width :].mul_(0.5)
            block.modulation.weight[: 2 * config.width].mul_(gamma)
    layers = () if model.text is None else cast(Sequence[Layer], model.text.layers)
    for layer in layers:
        layer.outside.weight.div_(math.sqrt(2 * len(layers)))
        layer.narrow.weight.div_(math.sqrt(2 * len(layers)))
    model.head_modulation.weight.mul_(0.5)
    model.head.weight.mul_(0.02)


@torch.no_grad()
def begin_as_identity(model: VAR) -> None:
    """Make every block give back what goes in: output projections 0, and gates 1 before the class moves them.

    In place of the release's start, by which all that a block does is let through by gates that are nearly 0.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention.out.weight.zero_()
        block.feed_forward.down.weight.zero_()
        block.gates.fill_(1.0)
