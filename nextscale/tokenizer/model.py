"""MultiScaleVQVAE: images to tokens and back. Convnet, quantizer, and the two convolutions between them.

Shapes: B batch, H W pixels, C code channels, L tokens of all scales.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from nextscale import config
from nextscale.checks import checked
from nextscale.config import TokenizerConfig
from nextscale.errors import InputError
from nextscale.files import checkpoint
from nextscale.images import Given, as_batch, check_range
from nextscale.machine.precision import exact, find_device
from nextscale.machine.shapes import shapes_alone
from nextscale.tokenizer.codes import Codebook
from nextscale.tokenizer.convnet import Decoder, Encoder
from nextscale.tokenizer.quantizer import (
    MultiScaleQuantizer,
    Quantized,
    Walk,
    check_tokens,
    codebook_loss,
    commitment_loss,
    spherical_commitment,
)

WEIGHTS = "tokenizer.safetensors"


class MultiScaleVQVAE(nn.Module):
    """The tokenizer (paper, section 3.2).

    Arguments:
        config: the architecture.
        seed: of the random weights. None leaves the weights on the meta device, for a state dict to be assigned to.
    """

    @checked
    def __init__(self, config: TokenizerConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        with shapes_alone():
            self.encoder = Encoder(config)
            self.pre_quantizer = nn.Conv2d(config.code_channels, config.code_channels, 3, padding=1)
            self.quantizer = MultiScaleQuantizer(config)
            self.post_quantizer = nn.Conv2d(config.code_channels, config.code_channels, 3, padding=1)
            self.decoder = Decoder(config)
        self.float()  # whatever torch's default is
        if seed is not None:
            self.to_empty(device="cpu")
            initialize(self, torch.Generator().manual_seed(int(seed) % 2**63))

    # -- doors ---------------------------------------------------------------------------------------------------------

    @checked
    def encode(self, images: Given) -> Tensor:
        """Images -> tokens (B, L) int64.

        Arguments:
            images: (B, 3, H, W) in [-1, 1], of any float dtype; or arrays or Pillow images, as `images.as_batch` takes
                them.

        Raises `InputError` for another size than the scales', another dtype, and floats out of range.
        """
        if not isinstance(images, Tensor):
            size, device = self.config, self.quantizer.device
            images = as_batch(images, height=size.height, width=size.width).to(device)
        with exact():
            f_BCHW = self.features(images)
            check_range(images)
            return self.quantizer.encode(f_BCHW)

    @checked
    def decode(self, tokens_BL: Tensor, through: int | None = None) -> Tensor:
        """Tokens (B, L) int64 -> images (B, 3, H, W) in [-1, 1]; `through=k` paints the first k scales only (1 .. K).

        Raises `InputError` for another shape, tokens outside the codebook, or k out of range.
        """
        scales = self.config.scales
        check_tokens(tokens_BL, scales.total, self.config.codebook_size)
        through = len(scales) if through is None else through
        if not 1 <= through <= len(scales):
            raise InputError(f"through: expected 1 .. {len(scales)} scales, got {through}")
        with exact():
            for _, canvas in zip(range(through), self.quantizer.canvases(tokens_BL), strict=False):
                painted = canvas
            return self.paint(painted)

    @checked
    def teacher_inputs(self, tokens_BL: Tensor) -> Tensor:
        """Tokens (B, L) int64 -> the transformer's inputs for scales 2 .. K, (B, L - h_1*w_1, C) float32."""
        check_tokens(tokens_BL, self.config.scales.total, self.config.codebook_size)
        with exact():
            return self.quantizer.teacher_inputs(tokens_BL)

    @checked
    def quantize(self, features_BCHW: Tensor, *, beta: float = 0.25) -> Quantized:
        """The training forward: straight-through f_hat, tokens, and the loss with commitment weight beta.

        Arguments:
            features_BCHW: (B, C, h_K, w_K), of any float dtype. Raises `InputError` for others.
        """
        shape = (self.config.code_channels, self.config.scales.height, self.config.scales.width)
        if features_BCHW.shape[1:] != shape or not features_BCHW.is_floating_point():
            got = f"{tuple(features_BCHW.shape)} {str(features_BCHW.dtype).removeprefix('torch.')}"
            raise InputError(f"features: expected shape (batch, {', '.join(map(str, shape))}), float, got {got}")
        f = features_BCHW.float()
        walk = self.quantizer(f)
        return Quantized(walk.f_hat(f), walk.tokens, self._loss(walk, f, beta))

    def _loss(self, walk: Walk, f_BCHW: Tensor, beta: float) -> Tensor:
        """The loss of `quantize`; FSQ and sphere have none."""
        if self.config.quantizer == "codebook":
            return codebook_loss(walk.canvases, f_BCHW) + beta * commitment_loss(walk.canvases, f_BCHW)
        return beta * spherical_commitment(walk.residuals) if self.config.bits else f_BCHW.new_zeros(())

    # -- the two halves of the convnet ---------------------------------------------------------------------------------

    def features(self, images_B3HW: Tensor) -> Tensor:
        """Images, float in [-1, 1], -> features f (B, C, h_K, w_K) float32, not yet quantized."""
        height, width = self.config.height, self.config.width
        if images_B3HW.shape[1:] != (3, height, width) or not images_B3HW.is_floating_point():
            got = f"{tuple(images_B3HW.shape)} {str(images_B3HW.dtype).removeprefix('torch.')}"
            raise InputError(f"images: expected shape (batch, 3, {height}, {width}), float in [-1, 1], got {got}")
        return self.pre_quantizer(self.encoder(images_B3HW.float())).float()

    def paint(self, canvas_BCHW: Tensor) -> Tensor:
        """A canvas f_hat (B, C, h_K, w_K) -> the image it shows, (B, 3, H, W) float32 in [-1, 1]."""
        return self.decoder(self.post_quantizer(canvas_BCHW)).float().clamp(-1, 1)

    # -- files ---------------------------------------------------------------------------------------------------------

    @checked
    def save(self, directory: str | Path) -> None:
        """Write config.json and tokenizer.safetensors; an interrupted save leaves the old files whole."""
        checkpoint.save(directory, {"tokenizer": config.to_json(self.config)}, {WEIGHTS: self.state_dict()})

    @classmethod
    @checked
    def load(cls, directory: str | Path, *, device: str | torch.device = "cpu") -> MultiScaleVQVAE:
        """The tokenizer of a tokenizer run, of a pipeline, or of whatever else holds the two files; in float32.

        Raises `InputError` when they are missing, damaged, or contradict each other.
        """
        sections, place = checkpoint.read_config(directory, ("tokenizer",)), find_device(device)
        architecture = config.from_json(TokenizerConfig, sections["tokenizer"])
        room = {"parameters": architecture.parameters, "blocks": architecture.blocks}
        weights = checkpoint.find_weights(Path(directory), WEIGHTS, sections)
        checkpoint.check_room(weights.path, **room)
        model = cls(architecture, seed=None)
        checkpoint.load(model, weights, device=place)
        return model


@torch.no_grad()
def initialize(model: MultiScaleVQVAE, generator: torch.Generator) -> None:
    """Random weights: convolutions uniform in +-1/sqrt(fan-in), gains 1, biases 0.

    Learned codes are normal / sqrt(C), their lengths then spread log-uniformly over 1/20 .. 1: the residuals of fine
    scales are short, and codes of one length would leave most of a shared codebook unused there.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            assert module.bias is not None
            module.bias.zero_()
        elif isinstance(module, nn.GroupNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, MultiScaleQuantizer):
            if isinstance(module.codebook, Codebook):
                initialize_codebook(module.codebook, generator)
                module.hits_KV.zero_()
            else:
                module.gain_K.fill_(1.0)


def initialize_codebook(codebook: Codebook, generator: torch.Generator) -> None:
    """The codes of `initialize`; the matrix of reparametrised ones starts as the identity."""
    codes = codebook.weight
    codes.normal_(std=codes.shape[1] ** -0.5, generator=generator)
    shortening = torch.rand(len(codes), 1, generator=generator, dtype=codes.dtype, device=codes.device)
    codes.mul_((shortening * math.log(1 / 20)).exp())
    if codebook.basis_CC is not None:
        nn.init.eye_(codebook.basis_CC)
        codes.requires_grad_(False)
