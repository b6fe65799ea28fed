"""Stage 1: the multi-scale tokenizer learns to reconstruct pictures.

Two steps, each named after what it updates: `update_autoencoder`, and where the recipe has an adversary,
`update_discriminator`. Everything random is a function of seed and step (`order`), drawn for the whole batch and cut to
what this process sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import images
from nextscale.config import TokenizerConfig, to_json
from nextscale.data import DataSet, Pictures
from nextscale.data.ahead import Ahead
from nextscale.features import FeatureNetwork
from nextscale.features import load as load_features
from nextscale.features.perceptual import PerceptualDistance
from nextscale.files.checkpoint import fingerprint
from nextscale.machine import distributed
from nextscale.machine.precision import Precision, find_device, lowered
from nextscale.scales import Scales
from nextscale.tokenizer import MultiScaleVQVAE
from nextscale.tokenizer.quantizer import (
    Walk,
    codebook_loss,
    commitment_loss,
    evenness,
    spherical_commitment,
    usage,
)
from nextscale.training import losses
from nextscale.training.loop import Health
from nextscale.training.optimization import Figures, Optimization, Outcome, running_average, training_dtype
from nextscale.training.order import announced, batch_of, generator, order_of, spread, views
from nextscale.training.recipes import TokenizerRecipe
from nextscale.training.rundir import Stateful
from nextscale.training.tokenizer import adversary, codebook, discriminators, gains, health
from nextscale.training.tokenizer.adversary import Adversary, Pair
from nextscale.training.tokenizer.semantic import Semantic

SHOWN = 8  # held-out pictures at most in a sample sheet
VALIDATED = 2048  # held-out pictures at most that a check looks at, spread over the split
PROBED = 8  # of which it is seen before every checkpoint that the weights are good for something
LOOKED_THROUGH = 64  # of which every scale is painted
STILL = 0.05  # evenness below which a digit hardly ever changes
STARTING_PICTURES = 1024  # whose residuals the codes start from
ON_FEATURES = ("codebook", "commitment", "entropy", "semantic")  # terms that the decoder has no part in


class Pass(NamedTuple):
    """Pictures through the autoencoder."""

    painted: Tensor
    """(B, 3, H, W) float32, unclamped."""
    f: Tensor
    """(B, C, h_K, w_K) float32 features."""
    walk: Walk
    projected: Tensor | None = None
    """(B, D, h_K, w_K) float32: features in the space of the semantic term's network; None without that term."""


class Autoencoder(nn.Module):
    """The training forward as one module, which several processes exchange the gradients of."""

    def __init__(self, tokenizer: MultiScaleVQVAE, projection: nn.Module | None = None, *, rotation: bool) -> None:
        super().__init__()
        self.tokenizer, self.projection, self.rotation = tokenizer, projection, rotation

    def forward(self, images_B3HW: Tensor, through_B: Tensor | None, scales: Scales) -> Pass:
        f = self.tokenizer.features(images_B3HW)
        walk = self.tokenizer.quantizer.rescaled(scales)(f, through_B, rotation=self.rotation)
        painted = self.tokenizer.decoder(self.tokenizer.post_quantizer(walk.f_hat(f))).float()
        return Pass(painted, f, walk, None if self.projection is None else self.projection(f).float())


class TokenizerStage:
    """What the training loop asks of stage 1 (`loop.Stage`).

    Arguments:
        config: the architecture.
        data: pictures of the size the config asks for.
        recipe, seed: of the optimisation, of weights and data order.
        device, precision: where and in what the convnets compute; weights and quantizer stay float32.
        begin: a tokenizer of the same config to go on from, instead of a random one; it is the one that is trained.
        perceptual: what the perceptual term measures with; None takes the packaged network.
        backbone: what a discriminator on features looks through; None takes the packaged network.
        semantic: what the semantic term compares with; None takes the packaged network.
    """

    name = "tokenizer"

    def __init__(
        self,
        config: TokenizerConfig,
        data: DataSet,
        *,
        recipe: TokenizerRecipe,
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        begin: MultiScaleVQVAE | None = None,
        perceptual: PerceptualDistance | None = None,
        backbone: FeatureNetwork | None = None,
        semantic: FeatureNetwork | None = None,
    ) -> None:
        recipe.check(config)
        self.device = find_device(device)
        self.dtype = training_dtype(precision, self.device)
        self.data, self.recipe, self.seed = data, recipe, seed
        self.ahead = Ahead(data.train, self.device)
        known: dict[str, object] = {}  # nothing of a random beginning, so that older runs continue
        if begin is not None:
            known["begin"] = fingerprint(begin.state_dict())  # before it is trained
        self.begun = begin is not None
        self.model = (begin or MultiScaleVQVAE(config, seed=seed)).to(self.device)
        if not config.fixed:
            self.model.quantizer.learned.learns(recipe.codebook.learning == "gradient")
        self.semantic = self._semantic(semantic) if recipe.objective.semantic else None
        if self.semantic:
            known["semantic"] = self.semantic.network.fingerprint
        projection = self.semantic.projection if self.semantic else None
        autoencoder = Autoencoder(self.model, projection, rotation=recipe.codebook.gradient == "rotation")
        self.passed = distributed.wrapped(autoencoder, idle=self._leaves_some_idle())
        learning = nn.ModuleList([self.model, projection]) if projection is not None else self.model
        self.optimization = Optimization(learning, recipe.optimization, self.passed)
        self.average = running_average(self.model, recipe.average)
        self.means: codebook.RunningMeans | None = None
        if not config.fixed:
            self.means = codebook.RunningMeans(self.model.quantizer, recipe.codebook.decay)
        self.perceptual: PerceptualDistance | None = None
        if recipe.objective.perceptual:
            self.perceptual = perceptual or PerceptualDistance(load_features(device=self.device))
        self.backbone: FeatureNetwork | None = None
        if recipe.adversarial.discriminator == "features":
            self.backbone = backbone or load_features(device=self.device)
        self.adversary = self._adversary()
        self.settings = known | {
            "tokenizer": to_json(config),
            "data": data.train.fingerprint,
            "precision": str(self.dtype).removeprefix("torch."),
            "perceptual": self.perceptual.fingerprint if self.perceptual else None,
            "backbone": self.backbone.fingerprint if self.backbone else None,
            **order_of(data.train),
        }

    def _semantic(self, network: FeatureNetwork | None) -> Semantic:
        found = Semantic(
            network or load_features(device=self.device), self.model.config, generator(self.seed, "semantic")
        )
        found.projection.to(self.device)
        return found

    def _leaves_some_idle(self) -> bool:
        """Whether a step may give some parameters no gradient."""
        quantizer = self.model.quantizer
        unused = set(range(len(quantizer.phis))) - set(quantizer.phi_of)
        return bool(unused) or self.recipe.codebook.random_scales > 0 or self.recipe.objective.codebook == 0

    def _adversary(self) -> Adversary | None:
        recipe, config = self.recipe.adversarial, self.model.config
        if recipe.discriminator == "none":
            return None
        side = min(config.height, config.width)
        discriminator = discriminators.make(
            recipe.discriminator, side, self.backbone, generator(self.seed, "discriminator")
        ).to(self.device)
        return Adversary(discriminator, recipe, self.recipe.optimization, self.dtype)

    @property
    def batch(self) -> int:
        """Images a step."""
        return self.recipe.optimization.batch

    @property
    def state(self) -> Mapping[str, Stateful]:
        """All that a checkpoint keeps."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimization,
            "average": self.average,
        }
        parts |= {"means": self.means} if self.means else {}
        parts |= {"semantic": self.semantic.projection} if self.semantic else {}
        return parts | ({"adversary": self.adversary} if self.adversary else {})

    @property
    def best_model(self) -> MultiScaleVQVAE:
        """What is validated, shown and saved: the running average of the weights."""
        averaged = self.average.module
        assert isinstance(averaged, MultiScaleVQVAE)
        return averaged

    # -- the steps -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self) -> None:
        """Before the first step: measure the gains of fixed codes, or begin with k-means if the recipe says so."""
        quantizer = self.model.quantizer
        if self.model.config.fixed and not self.begun:
            gains.measure(quantizer, self._starting_features())
        elif self.recipe.codebook.start == "kmeans" and not self.begun:
            codebook.start_from_residuals(quantizer, self._starting_features(), generator(self.seed, "kmeans"))
        if self.means:
            self.means.begin()

    def _starting_features(self) -> Tensor:
        """Features of `STARTING_PICTURES` training pictures, this process's share of them."""
        world = distributed.world()
        share = distributed.shared(max(min(STARTING_PICTURES, len(self.data.train)) // world, 1) * world)
        order = batch_of(self.data.train, STARTING_PICTURES, 0, self.seed)[share]
        with lowered(self.device, self.dtype):
            parts = [
                self.model.features(self.data.train.batch(part)[0].to(self.device))
                for part in order.split(self._unlearned)
            ]
        return torch.cat(parts)

    def prefetching(self, step: int) -> AbstractContextManager[None]:
        """While it is open, the pictures of `step` and those after are read ahead: a step's, and a part's."""
        parts = self.optimization.slices()
        wanted = announced(self.data.train, self.batch, self.seed, flip=self.recipe.flip, parts=parts, step=step)
        return self.ahead.reading(wanted, len(parts) + 1)

    def update(self, step: int, total: float | None) -> Outcome:
        """The autoencoder's step, then the discriminator's where it is its time."""
        outcome, pairs = self.update_autoencoder(step, total)
        if self.adversary and self.recipe.adversarial.learns(step, total):
            judged = self.update_discriminator(pairs, step, total)
            outcome = Outcome(outcome.figures | judged.figures, outcome.finite and judged.finite)
        return outcome

    def update_autoencoder(self, step: int, total: float | None) -> tuple[Outcome, list[Pair]]:
        """Encoder, codebook and decoder; also what the discriminator may compare."""
        pairs: list[Pair] = []
        walks: list[Walk] = []
        scales = codebook.chosen_scales(
            self.recipe.codebook, self.model.config.scales, generator(self.seed, "scales", step)
        )

        def parts() -> Iterator[tuple[Tensor, Figures]]:
            for part in self.optimization.parts():
                pair, through_B = self._batch(step, part, scales)
                with lowered(self.device, self.dtype):
                    made: Pass = self.passed(pair.images, through_B, scales)
                pairs.append(pair._replace(painted=made.painted.detach()))
                walks.append(made.walk)
                yield self.objective(made, pair, self.recipe.adversarial.heard(step, total))

        outcome = self.optimization.update(parts(), step, total)
        if outcome.finite:
            self._care(walks, scales, step, total)
        return outcome, pairs

    def update_discriminator(self, pairs: list[Pair], step: int, total: float | None) -> Outcome:
        """The discriminator, on what the autoencoder has just seen and painted."""
        assert self.adversary is not None
        return self.adversary.update(pairs, step, total)

    def _batch(self, step: int, part: slice, scales: Scales) -> tuple[Pair, Tensor | None]:
        """Pictures of a part of a step's batch, nothing painted yet, and with how many scales to paint them."""
        count = self.batch
        indices = batch_of(self.data.train, count, step, self.seed)[part]
        seen = views(count, step, self.seed, flip=self.recipe.flip)[part]
        originals = self.ahead.batch(indices, views=seen)[0].to(self.device, non_blocking=True)
        draws = adversary.draws(count, generator(self.seed, "augment", step))[part]
        through_B = codebook.dropped(self.recipe.codebook, scales, count, generator(self.seed, "dropout", step))
        return Pair(originals, originals, draws), None if through_B is None else through_B[part].to(self.device)

    def objective(self, made: Pass, pair: Pair, heard: float) -> tuple[Tensor, Figures]:
        """The scalar that the autoencoder minimises, and its terms, unweighted.

        `heard` is how much of the adversarial term counts. Its adaptive weight needs both gradients at the decoder's
        last convolution; they are taken at the pixels once, and go on from there together.
        """
        weights = self.recipe.objective
        painted = made.painted
        terms = {
            "l2": losses.l2(painted, pair.images),
            "l1": losses.l1(painted, pair.images),
        }
        terms |= self._on_codes(made)
        if self.perceptual:
            with lowered(self.device, self.dtype):
                terms["perceptual"] = self.perceptual(painted, pair.images).mean()
        if self.semantic and made.projected is not None:
            terms["semantic"] = losses.misaligned(made.projected, self.semantic.targets(pair.images))
        figures = {name: term.detach() for name, term in terms.items()}
        weighted = {name: getattr(weights, name) * term for name, term in terms.items()}
        on_features = sum(weighted[name] for name in ON_FEATURES if name in terms)
        on_pixels = sum(weighted[name] for name in ("l2", "l1", "perceptual") if name in terms)
        if heard:
            assert self.adversary is not None
            term = self.adversary.term(Pair(pair.images, painted, pair.draws))
            weight = self.recipe.adversarial.weight * heard
            on_pixels, adaptive = self._balanced(on_pixels, term, painted, weight)
            figures |= {
                "adversarial": term.detach(),
                "adaptive_weight": adaptive,
                "adversarial_weight": weight * adaptive,
            }
        return on_pixels + on_features, figures

    def _on_codes(self, made: Pass) -> dict[str, Tensor]:
        """The unweighted terms about codes, those that this kind of codes has."""
        config, walk = self.model.config, made.walk
        if config.fixed and not config.bits:
            return {}
        if config.bits:
            units = [F.normalize(z_NC, dim=1) for z_NC in walk.residuals]
            entropy = torch.stack([losses.bit_entropy(u_NC) for u_NC in units]).mean()
            return {"commitment": spherical_commitment(walk.residuals), "entropy": entropy}
        terms = {
            "codebook": codebook_loss(walk.canvases, made.f),
            "commitment": commitment_loss(walk.canvases, made.f),
        }
        if self.recipe.objective.entropy:
            residuals_NC, codes_VC = torch.cat(walk.residuals), self.model.quantizer.learned.vectors()
            if config.distance == "cosine":
                residuals_NC, codes_VC = F.normalize(residuals_NC, dim=1), F.normalize(codes_VC, dim=1)
            terms["entropy"] = losses.choice_entropy(residuals_NC, codes_VC)
        return terms

    def _balanced(self, on_pixels: Tensor, term: Tensor, painted: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """on_pixels + weight * adaptive * term, and the adaptive weight."""
        bounds, last = self.recipe.adversarial.adaptive_range, self.model.decoder.head.weight
        at_pixels = [torch.autograd.grad(loss, painted)[0] for loss in (on_pixels, term)]
        ours, theirs = (
            distributed.averaged(torch.autograd.grad(painted, last, gradient, retain_graph=True)[0])
            for gradient in at_pixels
        )
        adaptive = losses.adaptive_weight(ours, theirs, bounds)
        factor = weight * adaptive
        together = (painted * (at_pixels[0] + factor * at_pixels[1])).sum()
        return together + (on_pixels + factor * term - together).detach(), adaptive

    @torch.no_grad()
    def _care(self, walks: list[Walk], scales: Scales, step: int, total: float | None) -> None:
        """What follows an update: hits, running means, dead codes, the average of the weights."""
        recipe, quantizer = self.recipe.codebook, self.model.quantizer
        tokens = torch.cat([walk.tokens for walk in walks])
        residuals = [torch.cat(parts) for parts in zip(*(walk.residuals for walk in walks), strict=True)]
        if self.means is None:
            if scales == quantizer.scales and gains.follows(step, total):
                gains.follow(quantizer, residuals)
        elif scales == quantizer.scales:
            quantizer.count_hits(distributed.gathered(tokens), step)
        if self.means and recipe.learning == "average":
            self.means.update(residuals, tokens, scales)
        self.average.update_parameters(self.model)
        if self.means and codebook.is_restart(recipe, step, total) and scales == quantizer.scales:
            random = generator(self.seed, "restart", step)
            moved = codebook.restart_dead(quantizer, residuals, dead_below=recipe.dead_below, generator=random)
            self.means.moved(moved)
            self.best_model.quantizer.learned.weight[moved] = quantizer.learned.weight[moved]

    # -- what it has come to -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Held-out figures: PSNR, the terms on pixels and their weighted sum, and every scale's.

        Everything in the precision of training, on some pictures of a large split; what is painted through each scale
        is looked at in fewer.
        """
        model, weights = self.best_model, self.recipe.objective
        names = ["psnr", "l2", "l1", *(["perceptual"] if self.perceptual else [])]
        terms: dict[str, list[Tensor]] = {name: [] for name in names}
        tokens = []
        with lowered(self.device, self.dtype):
            for originals, tokens_BL in self._encoded(VALIDATED):
                painted = model.decode(tokens_BL)
                terms["psnr"].append(images.psnr(painted, originals))
                if self.perceptual:
                    terms["perceptual"].append(self.perceptual(painted, originals))
                error = (painted - originals).flatten(1)
                terms["l2"].append(error.square().mean(dim=1))
                terms["l1"].append(error.abs().mean(dim=1))
                tokens.append(tokens_BL)
        figures = {name: float(torch.cat(parts).float().mean()) for name, parts in terms.items()}
        figures["distance"] = sum(getattr(weights, name) * figures[name] for name in names[1:])
        if self.semantic:
            figures["semantic"] = self._alignment(self.semantic)
        parts = model.config.scales.split(torch.cat(tokens))
        return figures | _of_codes(model.config, parts) | self._through_each_scale()

    def _through_each_scale(self) -> dict[str, float]:
        """PSNR after scale k, and the share of the features' energy that is left then."""
        model, figures = self.best_model, dict[str, float]()
        decibels, left, energy = [], [], []
        with lowered(self.device, self.dtype):
            for originals, _ in self._encoded(LOOKED_THROUGH):
                f = model.features(originals)
                canvases = model.quantizer(f).canvases
                decibels.append(torch.stack([images.psnr(model.paint(canvas), originals) for canvas in canvases]))
                left.append(torch.stack([(f - canvas).square().sum() for canvas in canvases]))
                energy.append(f.square().sum())
        shares = torch.stack(left).sum(dim=0) / torch.stack(energy).sum()
        means = torch.cat(decibels, dim=1).mean(dim=1)
        for k, (psnr, share) in enumerate(zip(means.tolist(), shares.tolist(), strict=True), start=1):
            figures |= {f"psnr_scale_{k}": psnr, f"residual_scale_{k}": share}
        return figures

    def _alignment(self, semantic: Semantic) -> float:
        """The semantic term of some held-out pictures."""
        parts, counts = [], []
        with lowered(self.device, self.dtype):
            for originals, _ in self._encoded(LOOKED_THROUGH):
                projected = semantic.projection(self.best_model.features(originals)).float()
                parts.append(losses.misaligned(projected, semantic.targets(originals)) * len(originals))
                counts.append(len(originals))
        return float(torch.stack(parts).sum()) / sum(counts)

    def _encoded(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most so many held-out pictures with their tokens, in batches that fit where training fits."""
        indices = spread(self.data.validation, count)
        return encoded(self.best_model, self.data.validation, indices, batch=self._unlearned)

    @property
    def _unlearned(self) -> int:
        """Pictures at a time where nothing is learned, which takes an eighth of the memory or less."""
        return min(8 * self.optimization.part, 128)

    def health(
        self,
        validation: Mapping[str, float],
        figures: Sequence[Mapping[str, float]],
        history: Sequence[Mapping[str, float]],
    ) -> Health:
        """The scales in a table, and what is wrong in words."""
        pictures, config = len(spread(self.data.validation, VALIDATED)), self.model.config
        words = health.warnings(
            config,
            validation,
            figures,
            pictures,
            clip=self.recipe.optimization.clip,
            adaptive_range=self.recipe.adversarial.adaptive_range,
            history=history,
        )
        rows = health.table(health.usage(config, validation, pictures))
        told = [health.alignment(self.semantic.network.name, validation)] if self.semantic else []
        return Health((*rows, health.capacity(config), *told), tuple(words))

    def score(self, validation: Mapping[str, float]) -> float:
        """Lower is better; which checkpoint is the best one is decided by it."""
        return validation["distance"]

    @torch.no_grad()
    def sound(self) -> bool:
        """Whether features and reconstructions of some held-out pictures are finite, by the weights that learn."""
        originals = self.data.validation.batch(spread(self.data.validation, PROBED))[0].to(self.device)
        with lowered(self.device, self.dtype):
            f = self.model.features(originals)
            canvas = self.model.quantizer(f).canvases[-1]
            painted = self.model.decoder(self.model.post_quantizer(canvas))  # `paint` would clamp infinities away
        return bool(f.isfinite().all() and painted.isfinite().all())

    @torch.no_grad()
    def pictures(self) -> Tensor:
        """Held-out pictures, a row each: the original, then what is painted after each scale; coarse to fine."""
        model = self.best_model
        originals = self.data.validation.batch(spread(self.data.validation, SHOWN))[0].to(self.device)
        with lowered(self.device, self.dtype):
            canvases = model.quantizer(model.features(originals)).canvases
            strips = torch.stack([originals, *(model.paint(canvas) for canvas in canvases)], dim=1)
        return images.grid(strips.flatten(0, 1).cpu(), columns=strips.shape[1])

    def inputs(self, step: int) -> Tensor:
        """The pictures of a step, over all processes, for inspection."""
        return self._batch(step, slice(None), self.model.config.scales)[0].images.cpu()

    def export(self, directory: Path) -> None:
        """The tokenizer as `MultiScaleVQVAE.load` reads it."""
        self.best_model.save(directory)


def _of_codes(config: TokenizerConfig, parts: Sequence[Tensor]) -> dict[str, float]:
    """Of each scale's tokens: how many codes occur, and of fixed codes how evenly the values of their digits do."""
    figures = dict[str, float]()
    if config.countable:
        for k, (used, perplexity) in enumerate(usage(parts, config.codebook_size), start=1):
            figures |= {f"codes_used_scale_{k}": float(used), f"perplexity_scale_{k}": perplexity}
    if config.digits:
        for k, even_G in enumerate(evenness(parts, config.digits), start=1):
            figures |= {f"evenness_scale_{k}": float(even_G.mean()), f"still_scale_{k}": float((even_G < STILL).sum())}
    return figures


@torch.no_grad()
def encoded(
    tokenizer: MultiScaleVQVAE, pictures: Pictures, indices: range | None = None, *, batch: int = 128
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split or some of it, centre-cropped, with its tokens: (n, 3, H, W) and (n, L), on the tokenizer's device."""
    device = tokenizer.quantizer.device
    chosen = range(len(pictures)) if indices is None else indices
    for start in range(0, len(chosen), batch):
        originals, _ = pictures.batch(chosen[start : start + batch])
        originals = originals.to(device)
        yield originals, tokenizer.encode(originals)
