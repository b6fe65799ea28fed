"""Laws of measuring: the figures belong together, the rates are rates, and nothing is left changed."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import Pipeline
from nextscale.bench import sampling
from nextscale.bench.sampling import Gauge, Rates, measure_sampling, measure_tokenizer, peak_memory, seconds_of
from nextscale.errors import InputError
from nextscale.machine import flops
from nextscale.machine.flops import Convolution, Work

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small_gauge() -> Any:
    """Rates of small shapes: what they are does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "COPIED", 1 << 16)
        patch.setattr(sampling, "ROWS", {"cpu": 8, "accelerator": 8})
        yield


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_figures_of_sampling_belong_together(pipe: Pipeline, guidance: float) -> None:
    """One time a scale and one for the decoder, all positive; ratios are times over rooflines; medians of repeats."""
    measured = measure_sampling(pipe, 2, guidance=guidance, repeats=3)
    assert measured.batch == 2
    assert len(measured.scale_seconds_per_image) == 4
    assert min(*measured.scale_seconds_per_image, measured.decoder_seconds_per_image) > 0
    assert len(measured.seconds_of_repeats) == len(measured.ratios_of_repeats) == 3
    assert measured.seconds_per_image == sorted(measured.seconds_of_repeats)[1] / 2
    assert measured.roofline_ratio == sorted(measured.ratios_of_repeats)[1]
    work = sampling.sampling_work(pipe, guided=guidance != 0)
    assert (measured.matrix_flop_per_image, measured.convolution_flop_per_image) == (work.matrix, work.convolution)
    assert measured.first_call_seconds > 0
    assert measured.peak_memory_bytes > 10**7
    assert all(math.isfinite(value) for value in dataclasses.asdict(measured).values() if isinstance(value, float))


def test_prompts_are_timed_too(text_pipe: Pipeline, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same calls with a prompt in them; a model of classes takes none."""
    asked: list[Any] = []
    read = type(text_pipe.reader).read
    monkeypatch.setattr(type(text_pipe.reader), "read", lambda self, words: asked.extend(words) or read(self, words))
    measured = measure_sampling(text_pipe, 2, prompt="a red heart", repeats=1)
    assert set(asked) == {"a red heart", ""}
    assert measured.matrix_flop_per_image > measure_sampling(pipe, 2, repeats=1).matrix_flop_per_image
    with pytest.raises(InputError, match="this model reads no text"):
        measure_sampling(pipe, 1, prompt="a red heart", repeats=1)


def test_ratio_is_time_over_work_at_the_rates_around_it(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rates of 1 and 3 in turn, each repeat counts with 2."""
    made = iter([1.0, 3.0] * 2)

    def rates(gauge: Gauge) -> Rates:
        rate = next(made)
        return Rates(rate, rate, rate)

    monkeypatch.setattr(Gauge, "rates", rates)
    measured = measure_sampling(pipe, 1, repeats=2)
    work = sampling.sampling_work(pipe, guided=True).total
    assert measured.roofline_seconds_per_image == work / 2
    assert measured.ratios_of_repeats == pytest.approx([taken * 2 / work for taken in measured.seconds_of_repeats])


def test_work_of_an_image_is_the_sum_of_its_parts(pipe: Pipeline) -> None:
    """Class, scales, canvas and decoder; guidance doubles what the transformer does and nothing else."""
    plain, guided = (sampling.sampling_work(pipe, guided=guided) for guided in (False, True))
    decoder = flops.decoder_work(pipe.tokenizer.config)
    phi = flops.painting_work(pipe.tokenizer.config).convolution
    assert plain.convolution == guided.convolution == decoder.convolution + 4 * phi
    assert guided.matrix - decoder.matrix == 2 * (plain.matrix - decoder.matrix)
    early, last = (
        sampling.sampling_work(pipe, guided=True, until=3),
        flops.scale_work(pipe.transformer.config, 3, guided=False),
    )
    assert guided.matrix - early.matrix == last.matrix


@pytest.mark.parametrize("reads", [False, True])
def test_weights_read_are_the_models_weights(pipe: Pipeline, text_pipe: Pipeline, reads: bool) -> None:
    """Blocks and head once a scale, the rest once; biases and embeddings, a few per cent, left out."""
    pipe = text_pipe if reads else pipe
    sizes = {name: tensor.numel() * 4 for name, tensor in pipe.transformer.named_parameters() if tensor.ndim == 2}
    once = sum(size for name, size in sizes.items() if ".modulation." in name or ".text_keys." in name)
    blocks = sum(size for name, size in sizes.items() if name.startswith("blocks.")) - once
    once += sum(size for name, size in sizes.items() if name.startswith(("text.layers.", "pooled_text.")))
    decoder = [*pipe.tokenizer.decoder.parameters(), *pipe.tokenizer.post_quantizer.parameters()]
    expected = 4 * (blocks + sizes["head.weight"]) + once + sum(p.numel() * 4 for p in decoder if p.ndim == 4)
    assert sampling.weight_bytes(pipe) == expected


def test_figures_of_the_tokenizer_belong_together(pipe: Pipeline) -> None:
    """Pictures a second are the batch over the median time."""
    measured = measure_tokenizer(pipe, 2, repeats=3)
    assert measured.encoded_pictures_per_second == 2 / sorted(measured.encoding_seconds_of_repeats)[1]
    assert measured.decoded_pictures_per_second == 2 / sorted(measured.decoding_seconds_of_repeats)[1]
    assert min(measured.encoder_roofline_ratio, measured.decoder_roofline_ratio) > 0
    assert min(measured.first_encoding_seconds, measured.first_decoding_seconds) > 0


def test_tokenizer_is_measured_without_its_transformer() -> None:
    """The one beside it is hardly there."""
    pipe = sampling.tokenizer_pipeline("emoji-32", device="cpu", precision="fp32")
    assert pipe.transformer.config.parameters < 10**5
    assert pipe.tokenizer.config.channels == 32


def test_progress_is_told_after_the_first_call_and_each_repeat(pipe: Pipeline) -> None:
    """So that a bar knows its total beforehand."""
    for measure in (measure_sampling, measure_tokenizer):
        told: list[None] = []
        measure(pipe, 1, repeats=2, done=lambda told=told: told.append(None))  # type: ignore[misc,operator]
        assert len(told) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_the_machines(dtype: torch.dtype) -> None:
    """More than ten million operations a second, less than an accelerator's; time is work over rate."""
    rates = Gauge(16, 32, Convolution(32, 32, 3, 16, 16), device=CPU, dtype=dtype).rates()
    for rate in dataclasses.astuple(rates):
        assert 1e7 < rate < 1e16
    assert Rates(2.0, 5.0, 1.0).seconds(Work(matrix=4, convolution=10)) == 4.0
    assert Rates.mean([Rates(1.0, 2.0, 3.0), Rates(3.0, 4.0, 5.0)]) == Rates(2.0, 3.0, 4.0)


def test_seconds_are_wall_clock() -> None:
    """At least as long as what was waited for."""
    assert 0.02 <= seconds_of(lambda: time.sleep(0.02), CPU) < 2


def test_peak_memory_sees_what_was_allocated_and_let_go() -> None:
    """200 MB for a moment; a small call after it is back below, where the system lets the peak be reset."""
    size = 200 * 2**20
    before = resident()
    result, peak, scope = peak_memory(lambda: len(torch.ones(size, dtype=torch.uint8)), CPU)
    assert result == size
    assert peak >= before + 0.9 * size
    _, after, _ = peak_memory(lambda: None, CPU)
    assert scope == "process" or after < peak - size / 2


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def test_peak_is_the_process_s_where_it_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so."""

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    _, peak, scope = peak_memory(lambda: None, CPU)
    assert scope == "process"
    assert peak > 10**7


def test_measuring_leaves_torch_as_it_was(pipe: Pipeline, untouched: Callable[[], Any]) -> None:
    """Random numbers, threads, gradients."""
    with untouched():
        measure_sampling(pipe, 1, repeats=1)
        measure_tokenizer(pipe, 1, repeats=1)
