"""Stage 1: the multi-scale tokenizer learns to reconstruct pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nextscale import images
from nextscale.config import TokenizerConfig, to_json
from nextscale.data import DataSet, Pictures
from nextscale.precision import Precision, find_device, lowered
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.tokenizer.quantizer import usage
from nextscale.training.losses import psnr, reconstruction
from nextscale.training.optimization import Recipe, training_dtype
from nextscale.training.order import batch_indices, views

RECIPE = Recipe(
    batch=32,
    learning_rate=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.005,
    warmup_steps=100,
    final_rate=0.02,
    clip=1.0,
)
SHOWN = 8  # held-out pictures in a sample sheet


class TokenizerStage:
    """What the training loop asks of stage 1 (`loop.Stage`).

    Arguments:
        config: the architecture.
        data: pictures of the size the config asks for.
        recipe, seed: of the optimisation, of weights and data order.
        device, precision: where and in what the convnet computes; weights and quantizer stay float32.
    """

    name = "tokenizer"

    def __init__(
        self,
        config: TokenizerConfig,
        data: DataSet,
        *,
        recipe: Recipe = RECIPE,
        seed: int = 0,
        device: str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        self.device = find_device(device)
        self.dtype = training_dtype(precision, self.device)
        self.model = MultiScaleVQVAE(config, seed=seed).to(self.device)
        self.data, self.recipe, self.seed = data, recipe, seed
        self.settings = {
            "tokenizer": to_json(config),
            "data": data.train.fingerprint,
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction plus the quantizer's loss, on randomly cropped pictures."""
        indices = batch_indices(len(self.data.train), self.recipe.batch, step, self.seed)
        originals, _ = self.data.train.batch(indices, views=views(self.recipe.batch, step, self.seed))
        originals = originals.to(self.device)
        with lowered(self.device, self.dtype):
            f_hat, tokens, quantizer_loss = self.model.quantize(self.model.features(originals))
            painted = self.model.decoder(self.model.post_quantizer(f_hat)).float()
        self.model.quantizer.count_hits(tokens, step)
        loss = reconstruction(painted, originals)
        return loss + quantizer_loss, {"reconstruction": loss.detach(), "quantizer": quantizer_loss.detach()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean PSNR of held-out pictures, and codes used and their perplexity at each scale."""
        decibels, tokens = [], []
        for originals, tokens_BL in encoded(self.model, self.data.validation):
            decibels.append(psnr(self.model.decode(tokens_BL), originals))
            tokens.append(tokens_BL)
        figures = {"psnr": float(torch.cat(decibels).mean())}
        parts = self.model.config.scales.split(torch.cat(tokens))
        for k, (used, perplexity) in enumerate(usage(parts, self.model.config.codebook_size), start=1):
            figures[f"codes_used_scale_{k}"] = float(used)
            figures[f"perplexity_scale_{k}"] = perplexity
        return figures

    def pictures(self) -> Tensor:
        """Held-out pictures above their reconstructions."""
        originals, _ = self.data.validation.batch(range(min(SHOWN, len(self.data.validation))))
        with torch.no_grad():
            painted = self.model.decode(self.model.encode(originals.to(self.device))).cpu()
        return images.grid(torch.cat([originals, painted]), columns=len(originals))

    def export(self, directory: Path) -> None:
        """The tokenizer as `MultiScaleVQVAE.load` reads it."""
        self.model.save(directory)


@torch.no_grad()
def encoded(tokenizer: MultiScaleVQVAE, pictures: Pictures, *, batch: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
    """A split, centre-cropped, with its tokens: batches of (n, 3, H, W) and (n, L), on the tokenizer's device."""
    device = tokenizer.quantizer.codebook.weight.device
    for start in range(0, len(pictures), batch):
        originals, _ = pictures.batch(range(start, min(start + batch, len(pictures))))
        originals = originals.to(device)
        yield originals, tokenizer.encode(originals)
