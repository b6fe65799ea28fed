"""Laws of `nextscale bench`: tables for people, JSON for programs, mistakes in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMANDS = ["sample", "train", "tokenizer"]
QUICK = ["--preset", "emoji-32", "--repeats", 1, "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module", autouse=True)
def small_gauge() -> Iterator[None]:
    """Rates of small shapes: what they are does not matter here."""
    from nextscale.bench import sampling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "COPIED", 1 << 16)
        patch.setattr(sampling, "ROWS", {"cpu": 8, "accelerator": 8})
        yield


@pytest.fixture(scope="module", autouse=True)
def small_presets() -> Iterator[None]:
    """The scales of each preset, in models of a fraction of the work."""
    from nextscale import presets

    get = presets.get

    def shrunk(name: str) -> presets.Preset:
        preset = get(name)
        tokenizer = dataclasses.replace(preset.tokenizer, residual_blocks=1)
        transformer = dataclasses.replace(preset.transformer, depth=2, width=64, heads=2, feed_forward=64)
        return dataclasses.replace(preset, tokenizer=tokenizer, transformer=transformer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "get", shrunk)
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_table_has_a_row_a_batch_size_and_fits_80_columns(nextscale: Callable[..., Any], command: str) -> None:
    """And says what was measured on what."""
    done = nextscale("bench", command, *QUICK, "--batch", 1, 2)
    assert (done.status, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines if line[:1] in ("1", "2")][:2] == ["1", "2"]
    assert "emoji-32, random weights, float32" in done.output
    assert max(map(len, lines)) <= 80
    assert "…" not in done.output


def test_sampling_is_split_by_scale_and_decoder(nextscale: Callable[..., Any]) -> None:
    """With the rates and the work below."""
    output = nextscale("bench", "sample", *QUICK, "--batch", 1).output
    part = output[output.index("ms per image") :].split("\n\n")[0]
    assert [line.split()[0] for line in part.splitlines()[3:]] == ["1", "2", "3", "4", "6", "8", "decoder"]
    for words in ("rates: matrix products", "GFLOP/s", "GFLOP of matrix products", "reading the weights"):
        assert words in " ".join(output.split())


@pytest.mark.slow
def test_a_prompt_is_part_of_the_setting(nextscale: Callable[..., Any]) -> None:
    """Of a preset that reads; JSON without one is what it was."""
    reads = ["--preset", "icons-64", *QUICK[2:], "--prompt", "a $5 note"]
    plain, words = (
        json.loads(nextscale("bench", "sample", *given, "--batch", 1, "--json", "-").output) for given in (QUICK, reads)
    )
    assert words.keys() - plain.keys() == {"prompt"}
    assert words["prompt"] == "a $5 note"
    refused = nextscale("bench", "sample", *QUICK, "--batch", 1, "--prompt", "a heart")
    assert (refused.status, refused.errors.count("\n")) == (2, 1)
    assert "this model reads no text" in refused.errors


def test_guidance_that_ends_early_is_less_work(nextscale: Callable[..., Any]) -> None:
    """Counted, not only faster."""
    given = [
        "bench",
        "sample",
        *QUICK,
        "--batch",
        1,
        "--json",
        "-",
        "--top-k",
        "0,1,2,3,4,5",
        "--guidance",
        "1,1,1,1,1,1",
    ]
    plain, early = (json.loads(nextscale(*given, *more).output) for more in ([], ["--guidance-until", 5]))
    assert (early["guidance"], early["guidance_until"], early["top_k"]) == ([1] * 6, 5, [0, 1, 2, 3, 4, 5])
    work, less = (values["batches"][0]["matrix_flop_per_image"] for values in (plain, early))
    assert less < 0.9 * work


@pytest.mark.slow
def test_reach_and_step_guidance_are_part_of_the_setting(nextscale: Callable[..., Any]) -> None:
    """Named in the JSON where they are asked for; their work is counted."""
    given = ["bench", "sample", *QUICK, "--batch", 1, "--json", "-"]
    options = ([], ["--reach", 1], ["--step-guidance", 0.5])
    plain, near, led = (json.loads(nextscale(*given, *more).output) for more in options)
    assert near.keys() - plain.keys() == {"reach"}
    assert led.keys() - plain.keys() == {"step_guidance"}
    work, less, more = (values["batches"][0]["matrix_flop_per_image"] for values in (plain, near, led))
    assert less < work < more


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1], [1] * 9], ids=["one", "nine"])
def test_tables_fit_however_many_sizes_there_are(nextscale: Callable[..., Any], sizes: list[int]) -> None:
    """Eight columns of scales at most."""
    output = nextscale("bench", "sample", *QUICK, "--batch", *sizes).output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_json_holds_the_setting_and_every_batch_size(
    nextscale: Callable[..., Any], tmp_path: Path, command: str
) -> None:
    """Beside the table in a file; alone on stdout."""
    file = tmp_path / "bench.json"
    beside = nextscale("bench", command, *QUICK, "--batch", 2, "--json", file)
    assert "random weights" in beside.output
    alone = nextscale("bench", command, *QUICK, "--batch", 2, "--json", "-")
    for values in (json.loads(file.read_text(encoding="utf-8")), json.loads(alone.output)):
        assert (values["preset"], values["device"], values["precision"]) == ("emoji-32", "cpu", "float32")
        assert values["repeats"] == 1
        assert values["threads"] >= 1
        assert [row["batch"] for row in values["batches"]] == [2]
        assert all(row["peak_memory_bytes"] > 0 for row in values["batches"])


def test_json_of_sampling_names_its_units(nextscale: Callable[..., Any]) -> None:
    """What a table in the documentation is made from."""
    values = json.loads(nextscale("bench", "sample", *QUICK, "--batch", 1, "--json", "-").output)
    assert (values["guidance"], values["top_k"], values["top_p"]) == (1.5, 900, 0.96)
    (row,) = values["batches"]
    assert len(row["scale_seconds_per_image"]) == 6
    for name in (
        "seconds_per_image",
        "decoder_seconds_per_image",
        "first_call_seconds",
        "roofline_seconds_per_image",
        "roofline_ratio",
        "matrix_flop_per_second",
        "convolution_flop_per_second",
        "matrix_flop_per_image",
    ):
        assert row[name] > 0, name


@pytest.mark.slow
def test_threads_are_asked_for_and_given_back(nextscale: Callable[..., Any]) -> None:
    """Whatever they were before."""
    import torch

    before = torch.get_num_threads()
    done = nextscale("bench", "tokenizer", *QUICK, "--batch", 1, "--threads", 2, "--json", "-")
    assert json.loads(done.output)["threads"] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--batch", 0], "--batch: expected at least 1, got 0"),
        (["--batch", "many"], "--batch: expected numbers, got 'many'"),
        (["--repeats", 0], "--repeats: expected at least 1, got 0"),
        (["--threads", 0], "--threads: expected at least 1, got 0"),
        (["--preset", "var-d17"], "did you mean var-d16?"),
        (["--device", "nowhere"], "device: expected auto, cpu"),
    ],
)
def test_mistakes_are_one_line(nextscale: Callable[..., Any], command: str, options: list[Any], told: str) -> None:
    """Status 2, nothing on stdout."""
    done = nextscale("bench", command, *options)
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert told in done.errors


def test_top_k_and_top_p_are_checked(nextscale: Callable[..., Any]) -> None:
    """By the same words as in `sample`."""
    done = nextscale("bench", "sample", *QUICK, "--top-p", 2)
    assert (done.status, done.errors) == (2, "nextscale: error: top_p: expected 0 .. 1, got 2.0\n")


def test_group_has_help(nextscale: Callable[..., Any]) -> None:
    """These commands and no other."""
    shown = nextscale("bench", "--help")
    assert [line.split()[:2] for line in shown.output.splitlines() if line.startswith("  bench ")] == [
        ["bench", "sample"],
        ["bench", "train"],
        ["bench", "tokenizer"],
    ]


@pytest.mark.slow
def test_training_is_timed_beside_a_plain_loop(nextscale: Callable[..., Any], tmp_path: Path) -> None:
    """A row a batch size; the figures agree with each other."""
    file = tmp_path / "bench.json"
    done = nextscale("bench", "tokenizer", "--train", *QUICK, "--batch", 1, 2, "--json", file)
    assert (done.status, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines if line[:1] in ("1", "2")] == ["1", "2"]
    assert max(map(len, lines)) <= 80
    for row in json.loads(file.read_text(encoding="utf-8"))["batches"]:
        (ours,), (plain,) = row["seconds_of_repeats"], row["plain_seconds_of_repeats"]
        assert row["seconds_per_step"] == ours > 0
        assert row["speedup"] == pytest.approx(plain / ours)
        assert row["roofline_ratio"] > 0
        assert row["peak_memory_bytes"] > 0


def test_training_in_fp16_is_refused(nextscale: Callable[..., Any]) -> None:
    """As the trainer refuses it."""
    done = nextscale("bench", "tokenizer", "--train", *QUICK[:4], "--precision", "fp16")
    assert (done.status, done.errors.count("\n")) == (2, 1)


@pytest.mark.parametrize("option", [[], ["--recompute"]], ids=["plain", "recompute"])
def test_training_of_the_transformer_is_timed_beside_a_naive_step(
    nextscale: Callable[..., Any], tmp_path: Path, option: list[str]
) -> None:
    """Figures agree with each other; on the same weights and tokens both steps find the same loss and gradients."""
    file = tmp_path / "bench.json"
    done = nextscale(
        "bench", "train", *QUICK, "--depth", 2, "--batch", 2, "--compare", "naive", *option, "--json", file
    )
    assert (done.status, done.errors) == (0, "")
    assert max(map(len, done.output.splitlines())) <= 80
    assert "emoji-32 at depth 2, random weights" in done.output
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["recompute"] == bool(option)
    (row,) = values["batches"]
    (seconds,), naive = row["seconds_of_repeats"], row["naive"]
    assert row["images_per_second"] == pytest.approx(2 / seconds)
    assert row["tokens_per_second"] == pytest.approx(130 * row["images_per_second"])
    work = 2 * row["matrix_flop_per_image"]
    assert row["utilization"] == pytest.approx(work / seconds / row["matrix_flop_per_second"])
    assert naive["speedup"] == pytest.approx(naive["seconds_of_repeats"][0] / seconds)
    assert naive["encoding_seconds_per_step"] > 0
    assert naive["loss"] > 1
    assert abs(naive["loss_difference"]) < 1e-5
    assert naive["gradient_difference"] < 1e-5


@pytest.mark.slow
def test_what_muon_costs_is_told(nextscale: Callable[..., Any], tmp_path: Path) -> None:
    """Of the update alone beside AdamW's, and of the whole step; without Muon there is no such figure."""
    file = tmp_path / "bench.json"
    done = nextscale("bench", "train", *QUICK, "--batch", 1, 2, "--optimizer", "muon", "--json", file)
    assert (done.status, done.errors) == (0, "")
    assert max(map(len, done.output.splitlines())) <= 80
    assert "What Muon costs" in done.output
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["optimizer"] == "muon"
    for row in values["batches"]:
        cost, seconds = row["muon"], row["seconds_per_step"]
        assert min(cost["adamw_update_seconds"], cost["update_seconds"]) > 0
        more = cost["update_seconds"] - cost["adamw_update_seconds"]
        assert cost["added"] == pytest.approx(more / (seconds - more))
    plain = nextscale("bench", "train", *QUICK, "--batch", 1, "--json", "-")
    assert [row["muon"] for row in json.loads(plain.output)["batches"]] == [None]


def test_naive_step_is_not_made_unless_asked_for(nextscale: Callable[..., Any]) -> None:
    """Nor is there a table for it."""
    done = nextscale("bench", "train", *QUICK, "--batch", 1)
    assert "naive" not in done.output
    values = json.loads(nextscale("bench", "train", *QUICK, "--batch", 1, "--json", "-").output)
    assert values["batches"][0]["naive"] is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--depth", 0], "--depth: expected at least 1, got 0"),
        (["--precision", "fp16"], "precision: expected auto, fp32 or bf16 for training, got fp16"),
        (["--compare", "release"], "--compare: expected"),
    ],
)
def test_mistakes_about_training_are_one_line(nextscale: Callable[..., Any], options: list[Any], told: str) -> None:
    """Status 2, nothing on stdout."""
    done = nextscale("bench", "train", *options)
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert told in done.errors
