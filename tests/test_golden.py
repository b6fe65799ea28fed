"""Every number the release computed for a small model comes out of ours; see tests/parity."""

import pytest
import torch
import torch.nn.functional as F
from parity import golden

from nextscale import official
from nextscale.sampling import editing, loop
from nextscale.sampling.guidance import linear_guidance
from nextscale.sampling.loop import Choice, Edit, Painted


def same(name: str, ours: torch.Tensor) -> None:
    """Integers exactly, floats to 1e-4 of the largest."""
    expected = golden.array(name)
    if not expected.is_floating_point():
        assert torch.equal(ours, expected.to(ours.dtype)), name
        return
    assert ours.shape == expected.shape
    assert (ours.detach() - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def greedy(edit: Edit | None = None) -> list[Painted]:
    pipe = golden.pipeline()
    return list(
        loop.generate(
            pipe.transformer,
            pipe.tokenizer.quantizer,
            golden.LABELS,
            seeds=[0, 1],
            guidance=linear_guidance(golden.CONFIG["cfg"]),
            choice=Choice(top_k=1),
            edit=edit,
        )
    )


@torch.no_grad()
def test_the_tokenizer_computes_what_the_release_computes():
    """Features, tokens, every f_hat, both decodings, the loss and the teacher inputs."""
    tokenizer = golden.pipeline().tokenizer
    features = tokenizer.features(golden.picture())
    tokens = tokenizer.encode(golden.picture())
    same("latent", features)
    same("tokens", tokens)
    same("partial_latents", torch.stack(list(tokenizer.quantizer.canvases(tokens)), dim=1))
    same("reconstruction", tokenizer.decode(tokens))
    same("reconstruction_after_scale_2", tokenizer.decode(tokens, through=2))
    same("vq_loss", tokenizer.quantize(features).loss)
    same("tokens", tokenizer.quantize(features).tokens)
    same("teacher_forcing_input", tokenizer.teacher_inputs(tokens))


def test_the_transformer_computes_what_the_release_computes():
    """Logits, losses, and the norm of the loss's gradient for every parameter."""
    pipe = official.load(*golden.states(), precision="fp32")
    labels, tokens = torch.tensor(golden.LABELS), golden.array("tokens").long()
    logits = pipe.transformer(labels, golden.array("teacher_forcing_input"))
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
    losses.mean().backward()
    same("logits", logits)
    same("loss_per_token", losses)
    same("loss", losses.mean())
    theirs = official.names(pipe.transformer)
    norms = {
        theirs[name]: p.grad.norm().item() for name, p in pipe.transformer.named_parameters() if p.grad is not None
    }
    assert norms == pytest.approx(golden.EXPECTED["parameter_grad_norms"], rel=1e-3)


def test_greedy_sampling_paints_the_release_s_pictures():
    """Ten scales of choices, each the likeliest token under guidance."""
    steps = greedy()
    same("greedy_tokens", torch.cat([step.tokens.flatten(1) for step in steps], dim=1))
    same("greedy_latent", steps[-1].canvas)
    same("greedy_image", golden.pipeline().show(steps[-1].canvas))


@pytest.mark.parametrize("kind", ["inpaint", "outpaint"])
def test_editing_the_release_s_way_paints_the_release_s_pictures(kind):
    """The mask, the tokens that were chosen before the kept ones replaced them, and the result."""
    pipe = golden.pipeline()
    keep = editing.release_mask(golden.SCALES, tuple(golden.CONFIG["edit_box"]), inside=kind == "outpaint")
    steps = greedy(editing.release_edit(pipe.tokenizer.quantizer, golden.array("tokens").long(), keep))
    same(f"{kind}_mask", keep)
    same(f"{kind}_predicted_tokens", torch.cat([step.tokens.flatten(1) for step in steps], dim=1))
    same(f"{kind}_latent", steps[-1].canvas)
    same(f"{kind}_image", pipe.show(steps[-1].canvas))
