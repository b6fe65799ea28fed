"""Laws of stage 1: what it minimises, what it measures, and that it learns."""

from __future__ import annotations

from pathlib import Path

import torch

from nextscale import MultiScaleVQVAE
from nextscale.data import DataSet
from nextscale.training.loop import Length, train
from nextscale.training.losses import reconstruction
from nextscale.training.order import batch_indices, views
from nextscale.training.tokenizer import SHOWN, encoded


def test_training_reduces_the_loss_and_improves_held_out_emoji(first_stage, emoji: DataSet, tmp_path: Path) -> None:
    """Sixty steps on the embedded pictures: the error is halved, nearly, and held-out PSNR rises by 5 dB."""
    stage = first_stage(emoji, batch=16)
    before = stage.validate()["psnr"]
    events = list(train(stage, tmp_path, Length(steps=60), seed=0, checks=1))
    losses = [event.figures["reconstruction"] for event in events]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert events[-1].validation["psnr"] > before + 5


def test_the_loss_is_reconstruction_plus_quantizer(first_stage, toy: DataSet) -> None:
    """Of the step's own pictures and crops, computed here step by step."""
    stage = first_stage()
    loss, figures = stage.loss(5)
    pictures, _ = toy.train.batch(batch_indices(18, 4, 5, 0), views=views(4, 5, 0))
    f_hat, _, quantizer_loss = stage.model.quantize(stage.model.features(pictures))
    error = reconstruction(stage.model.decoder(stage.model.post_quantizer(f_hat)), pictures)
    torch.testing.assert_close(loss, error + quantizer_loss)
    torch.testing.assert_close(figures, {"reconstruction": error.detach(), "quantizer": quantizer_loss.detach()})


def test_the_loss_of_a_step_is_a_function_of_the_step(first_stage) -> None:
    """Asked for in any order."""
    stage, again = first_stage(), first_stage()
    losses = [float(stage.loss(step)[0].detach()) for step in range(4)]
    assert [float(again.loss(step)[0].detach()) for step in (3, 1, 0, 2)] == [losses[step] for step in (3, 1, 0, 2)]
    assert len(set(losses)) == 4


def test_every_parameter_learns(first_stage) -> None:
    """Encoder, quantizer and decoder: a gradient reaches each."""
    stage = first_stage()
    stage.loss(0)[0].backward()
    silent = [name for name, parameter in stage.model.named_parameters() if not parameter.grad.any()]
    assert not silent


def test_hits_are_counted_once_a_step(first_stage) -> None:
    """Four pictures of 1, 4, 9 and 16 tokens; validation counts none."""
    stage = first_stage()
    stage.loss(0)
    hits = stage.model.quantizer.hits_KV.clone()
    assert hits.sum(dim=1).tolist() == [4, 16, 36, 64]
    stage.validate()
    stage.pictures()
    assert torch.equal(stage.model.quantizer.hits_KV, hits)


def test_validation_measures_what_decode_gives_back(first_stage, toy: DataSet) -> None:
    """PSNR, codes used and perplexity of all held-out pictures, computed here without our helpers."""
    stage = first_stage()
    pictures, _ = toy.validation.batch(range(6))
    with torch.no_grad():
        tokens = stage.model.encode(pictures)
        errors = ((stage.model.decode(tokens) - pictures) ** 2).mean(dim=(1, 2, 3))
    figures = stage.validate()
    assert abs(figures["psnr"] - float((10 * torch.log10(4 / errors)).mean())) < 1e-3
    for k, part in enumerate(tokens.split([1, 4, 9, 16], dim=1), start=1):
        counts = part.flatten().bincount()
        shares = counts[counts > 0] / part.numel()
        assert figures[f"codes_used_scale_{k}"] == len(shares)
        assert abs(figures[f"perplexity_scale_{k}"] - float(torch.exp(-(shares * shares.log()).sum()))) < 1e-3


def test_validation_and_pictures_change_nothing(first_stage, untouched) -> None:
    """Neither weights nor gradients nor torch's random numbers."""
    stage = first_stage()
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    with untouched():
        assert stage.validate() == stage.validate()
        stage.pictures()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in stage.model.parameters())


def test_encoded_walks_the_split_in_order(first_stage, toy: DataSet) -> None:
    """Whatever the batch, each picture once, centre-cropped."""
    tokenizer = first_stage().model
    pictures, _ = toy.train.batch(range(18))
    for batch in (5, 18, 100):
        parts = list(encoded(tokenizer, toy.train, batch=batch))
        assert torch.equal(torch.cat([part for part, _ in parts]), pictures)
        assert torch.equal(torch.cat([tokens for _, tokens in parts]), tokenizer.encode(pictures))


def test_pictures_are_held_out_ones_above_their_reconstructions(first_stage, emoji: DataSet) -> None:
    """Two rows of eight in [-1, 1]."""
    sheet = first_stage(emoji).pictures()
    assert sheet.ndim == 3
    assert sheet.abs().max() <= 1
    assert sheet.shape[1] // 8 == 2
    assert sheet.shape[2] // 8 >= SHOWN


def test_export_is_what_load_reads(first_stage, tmp_path: Path) -> None:
    """Bit for bit, with the counters."""
    stage = first_stage()
    stage.loss(0)
    stage.export(tmp_path)
    loaded = MultiScaleVQVAE.load(tmp_path)
    assert loaded.config == stage.model.config
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
