"""Models small enough to try a law on in milliseconds, with weights large enough that a broken law shows.

A freshly initialised VAR has a head near zero and gates near zero: nothing flows through it, and every law of its
information flow would hold by accident. `make_transformer` therefore redraws all its weights at a healthy size.

One thread for all tests: a second one costs more than it gives to models this small, and on a machine that is busy
otherwise the two spend their time waiting for each other (20 s instead of 4 s for the README's Python).

Files of tests are kept in memory where there is room: on a disk that gives freed blocks back at once, deleting them
takes half of the time of some tests. `TMPDIR=... make test` keeps them elsewhere.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; for the programs that tests start, too

import dataclasses
import gc
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tiny import TOKENIZER
from torch import Tensor

from nextscale import VAR, MultiScaleVQVAE, Pipeline, Scales
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.text.vocabulary import Vocabulary

SCALES = TOKENIZER.scales
TRANSFORMER = TransformerConfig(
    scales=SCALES,
    codebook_size=TOKENIZER.codebook_size,
    code_channels=TOKENIZER.code_channels,
    classes=5,
    depth=3,
    width=64,
    heads=4,
    feed_forward=128,
    normalized_attention=True,
    shared_modulation=False,
)


MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # a file system in memory as Linux has it, and the bytes that must be free
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ["TMPDIR"] = str(MEMORY)  # for the programs that tests start, too
    tempfile.tempdir = None  # what was found out before

CAPTIONS = ("a red heart", "a blue heart", "a cat face, noto", "smiling face with open mouth", "빨간 하트")


# A shell script starts what it puts in the background with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_collection_finish() -> None:
    """What is there by now stays, so that no later search for garbage walks it: a twelfth of the time of all tests."""
    gc.collect()
    gc.freeze()


@torch.no_grad()
def awaken(transformer: VAR, *, seed: int = 1) -> VAR:
    """Redraw all weights so that class, codes, positions and attention each move the logits by about their own size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if name.endswith("temperature"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif "bias" in name:
            parameter.normal_(std=0.1, generator=generator)
        elif "embedding" in name or name in ("start", "positions", "levels.weight") or "table" in name:
            parameter.normal_(std=0.5, generator=generator)
        else:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return transformer


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """A flush takes 15 ms, which makes thousands of files slow; that there is one is a law of `files/test_durable`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once("runs", make)`: a directory that `make` fills, once for all processes that share the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def find(name: str, make: Callable[[Path], object]) -> Path:
        directory, unfinished = shared / name, shared / f"{name} unfinished"
        with FileLock(shared / f"{name}.lock"):
            if not directory.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(directory)
        return directory

    return find


@pytest.fixture(scope="session")
def tokenizer_config() -> TokenizerConfig:
    return TOKENIZER


@pytest.fixture(scope="session")
def transformer_config() -> TransformerConfig:
    return TRANSFORMER


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., MultiScaleVQVAE]:
    """`make_tokenizer(distance="cosine")`: a new tokenizer, by default of 8x8 pixels and 1 + 4 + 9 + 16 tokens."""

    def make(**changes: Any) -> MultiScaleVQVAE:
        return MultiScaleVQVAE(dataclasses.replace(TOKENIZER, **changes), seed=3)

    return make


@pytest.fixture(scope="session")
def make_transformer() -> Callable[..., VAR]:
    """`make_transformer(depth=2)`: a new transformer with healthy weights, for the tokens of `make_tokenizer`."""

    def make(**changes: Any) -> VAR:
        return awaken(VAR(dataclasses.replace(TRANSFORMER, **changes)))

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., MultiScaleVQVAE]) -> MultiScaleVQVAE:
    """Shared by all tests: look, do not touch."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def transformer(make_transformer: Callable[..., VAR]) -> VAR:
    """Shared by all tests: look, do not touch."""
    return make_transformer()


@pytest.fixture(scope="session")
def pipe(tokenizer: MultiScaleVQVAE, transformer: VAR) -> Pipeline:
    """In float32; shared by all tests: look, do not touch."""
    return Pipeline(tokenizer, transformer, classes=["ant", "bee", "cat", "dog", "eel"], precision="fp32")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """Learned from a few captions, 8 pieces a prompt."""
    return Vocabulary.learned(CAPTIONS, size=300, tokens=8)


@pytest.fixture(scope="session")
def text_config(vocabulary: Vocabulary) -> TransformerConfig:
    """That of all tests, with an embedded encoder of text."""
    return TRANSFORMER.reading(vocabulary=vocabulary.size, tokens=vocabulary.tokens)


@pytest.fixture(scope="session")
def text_pipe(tokenizer: MultiScaleVQVAE, vocabulary: Vocabulary, text_config: TransformerConfig) -> Pipeline:
    """Of classes and text, in float32, with healthy weights; shared by all tests: look, do not touch."""
    names = ["ant", "bee", "cat", "dog", "eel"]
    transformer = awaken(VAR(text_config))
    return Pipeline(tokenizer, transformer, classes=names, precision="fp32", reader=vocabulary)


@pytest.fixture
def images() -> Tensor:
    """Four pictures of 8x8 pixels in [-1, 1]."""
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(scope="session")
def random_tokens() -> Callable[..., Tensor]:
    """`random_tokens(scales, batch=2)`: (B, L) int64 in 0 .. 63."""

    def draw(scales: Scales = SCALES, batch: int = 2, seed: int = 0) -> Tensor:
        return torch.randint(64, (batch, scales.total), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def random_inputs() -> Callable[..., Tensor]:
    """`random_inputs(scales, batch=2)`: teacher inputs (B, L - h_1*w_1, 8), not from any tokens."""

    def draw(scales: Scales = SCALES, batch: int = 2, seed: int = 0) -> Tensor:
        shape = (batch, scales.total - scales.lengths[0], 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def untouched() -> Callable[[], Any]:
    """`with untouched(): ...` fails when what is inside changes anything of torch's that belongs to the caller."""

    def state() -> dict[str, Any]:
        return {
            "random numbers": torch.get_rng_state().tolist(),
            "default dtype": torch.get_default_dtype(),
            "default device": torch.get_default_device(),
            "gradients": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32 products": torch.get_float32_matmul_precision(),
        }

    @contextmanager
    def watch() -> Iterator[None]:
        before = state()
        yield
        assert state() == before

    return watch


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, one a worker: playwright can be started only once in a process."""
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("the browser tests need chromium (apt-get install chromium, or its path in $CHROMIUM)")
    with api.sync_playwright() as driver:
        # as root there is no sandbox; drawing without a GPU needs no second process for it
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
