"""Laws of the transformer: steps agree with the forward, information flows to finer scales only."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale import VAR, InputError, MultiScaleVQVAE, Scales
from nextscale.config import TransformerConfig
from nextscale.machine.precision import find_dtype
from nextscale.transformer import KeyValueCache, model

BF16_ERROR = 0.02  # of the logits' standard deviation; 0.005 .. 0.009 was measured

VARIANTS: list[dict[str, Any]] = [
    {},
    {"normalized_attention": False},
    {"shared_modulation": True},
    {"normalized_attention": False, "shared_modulation": True},
    {"scales": Scales([1, (2, 1), (3, 2), (4, 6)])},
    {"scales": Scales([(2, 2), 3, 4])},
    {"scales": Scales([(3, 4)])},
    {"depth": 1},
    {"activation": "relu2"},
    {"activation": "swiglu", "logit_cap": 3.0},
]


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest, make_transformer: Callable[..., VAR]) -> VAR:
    return make_transformer(**request.param)


def step_by_step(model: VAR, labels: Tensor, inputs: Tensor, reach: int | None = None) -> list[Tensor]:
    """The logits of each scale from `step` and a cache."""
    scales = model.config.scales
    condition = model.condition(labels)
    formats = {"dtype": model.compute_dtype, "device": inputs.device}
    cache = KeyValueCache(model.config, len(labels), **formats, reach=reach)
    first = scales.lengths[0]
    codes = [None, *(inputs[:, part.start - first : part.stop - first] for part in scales.slices()[1:])]
    return [model.step(k, codes_k, condition, cache) for k, codes_k in enumerate(codes)]


@torch.no_grad()
def test_forward_equals_step_by_step_with_a_cache(variant: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """To 1e-4 in float32, for every kind of model; the logits are of healthy size, so that 1e-4 means something."""
    labels, inputs = torch.tensor([0, 4, 5]), random_inputs(variant.config.scales, batch=3)
    logits = variant(labels, inputs)
    assert (logits.shape, logits.dtype) == ((3, variant.config.scales.total, 64), torch.float32)
    assert logits.std() > 0.5
    torch.testing.assert_close(torch.cat(step_by_step(variant, labels, inputs), dim=1), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reach", [1, 2, 4, 5])
@torch.no_grad()
def test_a_shorter_reach_is_the_same_with_a_cache(
    variant: VAR, random_inputs: Callable[..., Tensor], reach: int
) -> None:
    """With 1 the cache has no room at all; from K on nothing is left out, bit for bit."""
    labels, inputs = torch.tensor([0, 4, 5]), random_inputs(variant.config.scales, batch=3)
    logits, whole = (variant(labels, inputs, reach=each) for each in (reach, None))
    steps = torch.cat(step_by_step(variant, labels, inputs, reach), dim=1)
    torch.testing.assert_close(steps, logits, atol=1e-4, rtol=0)
    assert torch.equal(logits, whole) == (reach >= len(variant.config.scales))


def test_a_step_with_gradients_says_what_it_needs(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """Its cache is written in place; a model that is not trained needs nothing."""
    model, labels, inputs = make_transformer(), torch.tensor([1, 2]), random_inputs()
    with pytest.raises(
        InputError, match=r"^VAR\.step: expected torch\.no_grad\(\) or torch\.inference_mode\(\) around it"
    ):
        step_by_step(model, labels, inputs)
    logits = torch.cat(step_by_step(model.requires_grad_(False), labels, inputs), dim=1)
    torch.testing.assert_close(logits, model(labels, inputs), atol=1e-4, rtol=0)


@torch.no_grad()
def test_teacher_forcing_sees_what_sampling_would_see(
    make_tokenizer: Callable[..., MultiScaleVQVAE],
    make_transformer: Callable[..., VAR],
    random_tokens: Callable[..., Tensor],
) -> None:
    """Forward on `teacher_inputs` equals steps on the canvas pooled scale by scale, as sampling walks it."""
    for scales in (Scales([1, 2, 3, 4]), Scales([(2, 1), (3, 2), (4, 6)])):
        tokenizer, transformer = make_tokenizer(scales=scales), make_transformer(scales=scales)
        tokens, labels = random_tokens(scales), torch.tensor([1, 3])
        logits = scales.split(torch.arange(scales.total)[None])  # which positions each scale has
        whole = transformer(labels, tokenizer.teacher_inputs(tokens))
        condition = transformer.condition(labels)
        cache = KeyValueCache(transformer.config, 2, dtype=torch.float32, device=torch.device("cpu"))
        codes = None
        for k, canvas in enumerate(tokenizer.quantizer.canvases(tokens)):
            step = transformer.step(k, codes, condition, cache)
            torch.testing.assert_close(step, whole[:, logits[k].flatten()], atol=1e-4, rtol=0)
            if k + 1 < len(scales):
                codes = tokenizer.quantizer.pool(canvas, k + 1).flatten(2).transpose(1, 2)


@torch.no_grad()
def test_token_moves_the_logits_of_all_finer_scales_and_of_no_other(
    tokenizer: MultiScaleVQVAE, transformer: VAR, random_tokens: Callable[..., Tensor]
) -> None:
    """One token of scale j changed: scales <= j bit for bit the same, every position of every scale > j different."""
    scales, labels = transformer.config.scales, torch.tensor([2])
    tokens = random_tokens(batch=1)
    before = transformer(labels, tokenizer.teacher_inputs(tokens))
    for part in scales.slices():
        changed = tokens.clone()
        changed[:, part.start] = (changed[:, part.start] + 17) % 64
        moved = (transformer(labels, tokenizer.teacher_inputs(changed)) - before).abs().amax(dim=-1)[0]
        assert moved[: part.stop].max() == 0
        assert (moved[part.stop :] > 1e-4).all()


@torch.no_grad()
def test_input_moves_all_positions_of_its_own_and_finer_scales_and_of_no_coarser(
    variant: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Attention is full inside a scale: one input of scale k disturbs every position from k's first on."""
    scales, labels = variant.config.scales, torch.tensor([2])
    inputs, first = random_inputs(scales, batch=1), scales.lengths[0]
    before = variant(labels, inputs)
    for part in scales.slices()[1:]:
        changed = inputs.clone()
        changed[:, part.stop - 1 - first] += 3.0
        moved = (variant(labels, changed) - before).abs().amax(dim=-1)[0]
        assert moved[: part.start].max() == 0
        assert (moved[part.start :] > 1e-4).all()


@torch.no_grad()
def test_every_position_hears_the_class_and_its_own_place(
    transformer: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Another label moves all logits; equal inputs at two places of a scale give different logits."""
    inputs = random_inputs(batch=1)
    a, b = (transformer(torch.tensor([label]), inputs) for label in (0, 1))
    assert ((a - b).abs().amax(dim=-1) > 1e-3).all()
    blank = transformer(torch.tensor([0]), torch.zeros_like(inputs))
    assert torch.pdist(blank[0]).min() > 1e-3


@torch.no_grad()
def test_no_class_is_the_last_row_of_the_class_embedding(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor]
) -> None:
    """Label 5 of 5 classes reads row 5, and that row concerns no other label."""
    model, inputs = make_transformer(), random_inputs(batch=2)
    labels = torch.tensor([4, 5])
    before = model(labels, inputs)
    model.class_embedding.weight[5] += 1.0
    after = model(labels, inputs)
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.1
    with pytest.raises(InputError, match=r"labels: expected 0 \.\. 5 \(5: no class\), got 6 \.\. 6"):
        model(torch.tensor([6, 6]), inputs)


@torch.no_grad()
def test_logits_of_an_image_do_not_depend_on_its_batch(transformer: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """Alone or among others, up to rounding."""
    labels, inputs = torch.arange(6), random_inputs(batch=6)
    together = transformer(labels, inputs)
    for i in range(6):
        alone = transformer(labels[i : i + 1], inputs[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_every_weight_is_trained(variant: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """A gradient reaches each tensor; the code projection alone has nothing to do when there is a single scale."""
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    logits = variant(labels, random_inputs(variant.config.scales, batch=6))
    nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits.shape[:2].numel()) % 64).backward()
    idle = {name for name, p in variant.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    single = len(variant.config.scales) == 1
    assert idle == ({"code_projection.weight", "code_projection.bias"} if single else set())


@torch.no_grad()
def test_first_scales_alone_give_the_logits_they_give_among_all(
    variant: VAR, random_inputs: Callable[..., Tensor]
) -> None:
    """Whatever comes later is not seen, so it may be left out."""
    scales, labels = variant.config.scales, torch.tensor([0, 5])
    inputs, first = random_inputs(scales, batch=2), scales.lengths[0]
    whole = variant(labels, inputs)
    for part in scales.slices():
        some = variant(labels, inputs[:, : part.stop - first])
        torch.testing.assert_close(some, whole[:, : part.stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 30, 8), (2, 29, 9), (1, 29, 8), (2, 8, 29), (2, 3, 8)], ids=str)
def test_teacher_inputs_of_another_shape_are_refused(transformer: VAR, shape: tuple[int, ...]) -> None:
    """With the shape that fits."""
    with pytest.raises(InputError, match=r"^teacher inputs: expected shape \(2, 29, 8\), got "):
        transformer(torch.tensor([0, 1]), torch.zeros(shape))


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_lower_precision_holds_the_blocks_and_nothing_else(
    make_transformer: Callable[..., VAR], random_inputs: Callable[..., Tensor], shared: bool
) -> None:
    """bfloat16 blocks, float32 embeddings and head; logits in float32, close to the exact ones but not equal."""
    model, inputs, labels = make_transformer(shared_modulation=shared), random_inputs(batch=2), torch.tensor([1, 2])
    exact = model(labels, inputs)
    assert model.lower_precision(torch.bfloat16) is model
    for name, parameter in model.named_parameters():
        inside = name.startswith(("blocks.", "shared_modulation."))
        assert parameter.dtype == (torch.bfloat16 if inside else torch.float32), name
    assert model.compute_dtype == torch.bfloat16
    lowered = model(labels, inputs)
    assert lowered.dtype == torch.float32
    assert 0 < (lowered - exact).std() / exact.std() < BF16_ERROR
    steps = torch.cat(step_by_step(model, labels, inputs), dim=1)
    assert (steps - exact).std() / exact.std() < BF16_ERROR


@torch.no_grad()
def test_the_last_norm_is_computed_in_float32(transformer: VAR) -> None:
    """Of what blocks in bfloat16 leave, exactly what the same numbers in float32 give."""
    x = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    condition = transformer.condition(torch.tensor([1, 5]))
    of_low, of_exact = transformer.before_head(x, condition), transformer.before_head(x.float(), condition)
    assert of_low.dtype == torch.float32
    assert torch.equal(of_low, of_exact)


@torch.no_grad()
def test_the_head_multiplies_in_the_format_it_is_held_in(make_transformer: Callable[..., VAR]) -> None:
    """And gives float32; autocast has no say in it."""
    model, h = make_transformer(), torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(0))
    exact = h @ model.head.weight.T + model.head.bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.through_head(h), exact, atol=1e-5, rtol=1e-4)
    model.head.to(torch.bfloat16)
    low = model.through_head(h)
    assert low.dtype == torch.float32
    assert 0 < (low - exact).std() / exact.std() < BF16_ERROR


@torch.no_grad()
def test_autocast_keeps_logits_in_float32_and_close(transformer: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """As in training with mixed precision: float32 weights, products in bfloat16, the head exact."""
    labels, inputs = torch.tensor([1, 2]), random_inputs(batch=2)
    exact = transformer(labels, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = transformer(labels, inputs)
    assert lowered.dtype == torch.float32
    assert 0 < (lowered - exact).std() / exact.std() < BF16_ERROR


def test_weights_follow_the_seed(transformer_config: TransformerConfig, untouched: Callable[[], Any]) -> None:
    """Same seed, same weights; another seed, others; 0 unless told; torch's own state is not asked."""
    with untouched():
        first, other = (VAR(transformer_config, seed=seed).state_dict() for seed in (0, 1))
        again = VAR(transformer_config).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@torch.no_grad()
def test_what_enters_the_blocks_is_a_sum_of_embeddings(variant: VAR) -> None:
    """Class, start, position and level of the first scale; of the others the projected codes, position and level."""
    scales, labels = variant.config.scales, torch.tensor([2, 5])
    assert (variant.start.shape, variant.positions.shape) == ((1, scales.lengths[0], 64), (1, scales.total, 64))
    places = variant.positions[0] + variant.levels.weight[scales.level_ids()]
    first = scales.slices()[0]
    classes = variant.class_embedding.weight[labels].unsqueeze(1)
    expected = classes + variant.start + places[first]
    torch.testing.assert_close(variant.embed_start(variant.condition(labels)), expected)
    for k, part in enumerate(scales.slices()[1:], start=1):
        codes = torch.randn(2, scales.total - part.start, 8, generator=torch.Generator().manual_seed(k))
        projected = codes @ variant.code_projection.weight.T + variant.code_projection.bias
        expected = projected + places[part.start :]
        torch.testing.assert_close(variant.embed_codes(codes, k, len(scales)), expected)
        alone = variant.embed_codes(codes[:, : scales.lengths[k]], k, k + 1)
        torch.testing.assert_close(alone, expected[:, : scales.lengths[k]])


@torch.no_grad()
def test_a_condition_of_another_model_is_noticed(transformer: VAR) -> None:
    """One without modulations for the last block would leave it out in silence."""
    condition = transformer.condition(torch.tensor([0]))
    cache = KeyValueCache(transformer.config, 1, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="shorter"):
        transformer.step(0, None, condition._replace(blocks=condition.blocks[:-1]), cache)


def test_a_saved_transformer_is_loaded_bit_for_bit(make_transformer: Callable[..., VAR], tmp_path: Path) -> None:
    """On the CPU and in float32 unless told; it can be trained on."""
    saved = make_transformer(depth=2)
    saved.save(tmp_path)
    loaded = VAR.load(tmp_path)
    assert loaded.config == saved.config
    assert {*json.loads((tmp_path / "config.json").read_text())} >= {"transformer"}
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == torch.float32
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    low = VAR.load(tmp_path, device="cpu", precision="bf16")
    assert low.compute_dtype == torch.bfloat16
    assert torch.equal(low.head.weight, saved.head.weight)
    assert VAR.load(tmp_path, precision="auto").compute_dtype == find_dtype("auto", torch.device("cpu"))


def test_no_weights_are_drawn_that_a_file_replaces(
    make_transformer: Callable[..., VAR], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model that would take longer than to read it."""
    make_transformer(depth=1).save(tmp_path)
    monkeypatch.setattr(model, "initialize", lambda *_: pytest.fail("weights were drawn"))
    VAR.load(tmp_path)


def test_a_folder_without_a_transformer_or_without_room_for_it_is_told(
    make_transformer: Callable[..., VAR], make_tokenizer: Callable[..., MultiScaleVQVAE], tmp_path: Path
) -> None:
    """What is missing is named; a config that the weights cannot hold is told before a model is made."""
    make_tokenizer().save(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="transformer"):
        VAR.load(tmp_path / "tokenizer")
    make_transformer(depth=1).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    for name, wrong in (("codebook_size", 2**20), ("depth", 200)):
        path.write_text(json.dumps(values | {"transformer": values["transformer"] | {name: wrong}}))
        with pytest.raises(InputError, match=r"transformer.safetensors: expected [\d,]+ parameters in [\d,]+ blocks"):
            VAR.load(tmp_path / "model")
    path.unlink()
    with pytest.raises(InputError, match="config.json"):
        VAR.load(tmp_path / "model")


def test_seeds_are_taken_modulo_2_to_the_63(transformer_config: TransformerConfig) -> None:
    """Any integer is one; these four are different."""
    small = dataclasses.replace(transformer_config, depth=1)
    starts = [VAR(small, seed=seed).start for seed in (-1, 2**63 - 1, 2**64 + 5, 5, 131, 10**30)]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[2], starts[3])
    assert len(torch.stack(starts).flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("shared", [False, True])
def test_weights_do_not_depend_on_torchs_defaults(transformer_config: TransformerConfig, shared: bool) -> None:
    """Neither on its default dtype nor on its default device."""
    config = dataclasses.replace(transformer_config, shared_modulation=shared)
    expected = VAR(config, seed=4).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            seen = VAR(config, seed=4).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_blocks_may_be_run_in_another_way(transformer: VAR, random_inputs: Callable[..., Tensor]) -> None:
    """`run` gets each block and its arguments, in order; what it gives goes on."""
    labels, inputs, seen = torch.tensor([1, 5]), random_inputs(batch=2), []

    def run(block: nn.Module, *arguments: Any) -> Tensor:
        seen.append(block)
        return block(*arguments) + len(seen)

    expected = transformer.hidden(labels, inputs)
    assert not torch.allclose(transformer.hidden(labels, inputs, run=run), expected)
    assert seen == list(transformer.blocks)
    assert torch.equal(transformer.hidden(labels, inputs, run=lambda block, *given: block(*given)), expected)


@torch.no_grad()
def test_a_model_on_the_meta_device_has_the_shapes(transformer_config: TransformerConfig) -> None:
    """Forward and step by step: nothing that either makes lies elsewhere."""
    model = VAR(transformer_config, seed=None)
    assert all(parameter.is_meta for parameter in model.parameters())
    labels, inputs = torch.zeros(2, dtype=torch.int64, device="meta"), torch.zeros(2, 29, 8, device="meta")
    logits = model(labels, inputs)
    assert (logits.shape, logits.is_meta) == ((2, 30, 64), True)
    assert [step.shape[1] for step in step_by_step(model, labels, inputs)] == [1, 4, 9, 16]


@pytest.mark.parametrize("depth", [4, 22, 30, 36])
@pytest.mark.parametrize("shared", [False, True])
def test_initial_weights_have_the_published_statistics(depth: int, shared: bool) -> None:
    """Standard deviations within 5 % (of the gates too, which shrink with depth), biases 0, temperatures log 4."""
    width = 96
    config = TransformerConfig(
        scales=Scales([1, 4, 12]),
        codebook_size=128,
        code_channels=32,
        classes=100,
        depth=depth,
        width=width,
        heads=4,
        feed_forward=4 * width,
        normalized_attention=True,
        shared_modulation=shared,
    )
    model = VAR(config, seed=0)
    std = math.sqrt(1 / (3 * width))
    gamma = {4: 1e-3, 22: 1e-4, 30: 1e-5, 36: 5e-6}[depth]
    block = model.blocks[1]
    expected = {
        model.class_embedding.weight: std,
        model.positions: std,
        model.code_projection.weight: std,
        block.attention.qkv.weight: std,
        block.feed_forward.up.weight: std,
        block.attention.out.weight: std / math.sqrt(2 * depth),
        block.feed_forward.down.weight: std / math.sqrt(2 * depth),
        model.head.weight: 0.02 * std,
        model.head_modulation.weight: 0.5 * std,
    }
    if shared:
        assert model.shared_modulation is not None
        tables = torch.cat([b.modulation_table for b in model.blocks])
        expected |= {
            model.shared_modulation.weight: std,
            tables[:, :, :2]: gamma * width**-0.5,
            tables[:, :, 2:]: 0.5 * width**-0.5,
        }
    else:
        expected |= {
            block.modulation.weight[: 2 * width]: gamma * std,
            block.modulation.weight[2 * width :]: 0.5 * std,
        }
    for weight, value in expected.items():
        slack = 0.05 if weight.numel() > 2000 else 0.15
        assert weight.std().item() == pytest.approx(value, rel=slack)
        assert abs(weight.mean().item()) < 5 * value / math.sqrt(weight.numel())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        if name.endswith("temperature"):
            assert torch.equal(parameter, torch.full((4, 1, 1), math.log(4))), name


@pytest.mark.parametrize(
    ("depth", "gamma"),
    [(20, 1e-3), (21, 1e-4), (24, 1e-4), (25, 1e-5), (30, 1e-5), (31, 5e-6), (36, 5e-6)],
)
@pytest.mark.parametrize("shared", [False, True])
def test_initial_gates_are_the_releases_at_every_depth(
    transformer_config: TransformerConfig, depth: int, gamma: float, shared: bool
) -> None:
    """gamma is 1e-3 up to depth 20, 1e-4 up to 24, 1e-5 up to 30, 5e-6 beyond: within 5 % over all blocks."""
    changes = {"width": 16, "heads": 1, "feed_forward": 16, "shared_modulation": shared}
    config = dataclasses.replace(transformer_config, depth=depth, **changes)
    model = VAR(config, seed=0)
    if shared:
        gates, std = torch.cat([block.modulation_table[:, :, :2] for block in model.blocks]), 16**-0.5
    else:
        gates, std = torch.cat([block.modulation.weight[: 2 * 16] for block in model.blocks]), math.sqrt(1 / (3 * 16))
    assert gates.std().item() == pytest.approx(gamma * std, rel=0.1 if shared else 0.05)


def test_untrained_model_expects_every_code_alike(
    transformer_config: TransformerConfig, random_inputs: Callable[..., Tensor]
) -> None:
    """The head starts near zero, so the first loss is log V."""
    model = VAR(dataclasses.replace(transformer_config, depth=16), seed=0)
    logits = model(torch.tensor([0, 1]), random_inputs(batch=2))
    targets = torch.arange(60) % 64
    assert nn.functional.cross_entropy(logits.flatten(0, 1), targets).item() == pytest.approx(math.log(64), abs=1e-3)
