"""Thousands of calls of the public functions with wrong arguments: each must raise a sentence or do what was asked.

    python benchmarks/wrong_calls.py [--calls 2000] [--seed 0]

Hypothesis puts wrong values (None, numbers, text, tensors of other shapes and types, lists of these, functions ...) in
place of one or two arguments of a call that works. What may come of it is a result, `InputError`, or Python's own
`TypeError` for a call that does not bind. Told are the calls that end in another way, the first of each kind; the exit
status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import reprlib
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import miniature
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image

from nextscale import VAR, InputError, MultiScaleVQVAE, Pipeline, Scales, data, features, official, presets
from nextscale.pipeline import Rerank
from nextscale.sampling import guidance

LONGEST = 600  # characters of a sentence


@dataclass(frozen=True)
class Door:
    """A public function with arguments that work."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


@cache
def pipeline() -> Pipeline:
    """Of three classes."""
    return miniature.pipeline(["ant", "bee", "cat"])


def doors() -> list[Door]:
    """Of each public name, in a directory where they may write."""
    pipe, scales = pipeline(), Scales([1, 2, 4])
    tokenizer, transformer = pipe.tokenizer, pipe.transformer
    reads = miniature.reading_pipeline(["ant", "bee", "cat"])
    pipe.save("model")
    images, tokens = torch.zeros(2, 3, 8, 8), torch.zeros(2, scales.total, dtype=torch.int64)
    vae, var = official.export(pipe)
    drawn = {"guidance": 1.5, "top_k": 9, "top_p": 0.9, "temperature": 1.0, "smooth": False}
    drawn |= {"step_guidance": [0.0, 0.5, 0.5], "reach": 2}
    network = features.of_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), name="n", side=8)
    return [
        Door("Scales", Scales, {"sizes": [1, 2, (4, 6)]}),
        Door("Scales.of", Scales.of, {"sizes": [1, 2]}),
        Door("Scales.suggest", Scales.suggest, {"height": 32, "width": 48, "stride": 16}),
        Door("Scales.split", scales.split, {"tokens_BL": tokens}),
        Door("presets.get", presets.get, {"name": "emoji-32"}),
        Door("MultiScaleVQVAE", MultiScaleVQVAE, {"config": tokenizer.config, "seed": 0}),
        Door("MultiScaleVQVAE.load", MultiScaleVQVAE.load, {"directory": "model"}),
        Door("MultiScaleVQVAE.save", tokenizer.save, {"directory": "new"}),
        Door("MultiScaleVQVAE.encode", tokenizer.encode, {"images": images}),
        Door("MultiScaleVQVAE.decode", tokenizer.decode, {"tokens_BL": tokens, "through": 2}),
        Door("MultiScaleVQVAE.teacher_inputs", tokenizer.teacher_inputs, {"tokens_BL": tokens}),
        Door("MultiScaleVQVAE.quantize", tokenizer.quantize, {"features_BCHW": torch.zeros(2, 8, 4, 4), "beta": 0.25}),
        Door("VAR", VAR, {"config": transformer.config, "seed": 0}),
        Door(
            "VAR()", transformer, {"labels_B": torch.zeros(2, dtype=torch.int64), "inputs_BLC": torch.zeros(2, 20, 8)}
        ),
        Door("VAR.load", VAR.load, {"directory": "model", "precision": "fp32"}),
        Door("VAR.save", transformer.save, {"directory": "new-transformer"}),
        Door("Pipeline", Pipeline, {"tokenizer": tokenizer, "transformer": transformer, "classes": list("abc")}),
        Door("Pipeline.from_preset", _from_preset, {"name": "emoji-32", "seed": 0, "precision": "fp32"}),
        Door("Pipeline.load", Pipeline.load, {"model": "model", "device": "cpu", "precision": "fp32"}),
        Door("Pipeline.save", pipe.save, {"directory": "new"}),
        Door("Pipeline.to", copy.deepcopy(pipe).to, {"device": "cpu"}),
        Door("Pipeline.generate", pipe.generate, {"labels": [0, "bee"], "seeds": [0, 1], **drawn, "memory": 1e9}),
        Door(
            "Pipeline.generate of words", reads.generate, {"prompts": ["a", "b"], "labels": "bee", "seeds": 1, **drawn}
        ),
        Door("Pipeline.stream", _streamed, {"labels": [0], "seeds": 3, **drawn}),
        Door("Pipeline.edit", pipe.edit, {"images": images, "mask": torch.ones(8, 8), "labels": [0, 1], **drawn}),
        Door("Pipeline.generate of the best", _reranked, {"score": _brightness, "count": 3, "scales": [0, 1]}),
        Door("Pipeline.repeat", pipe.repeat, {"request": pipe.generate([0]).requests[0]}),
        Door("Pipeline.reconstruct", pipe.reconstruct, {"images": images, "through": 2}),
        Door("Pipeline.log_likelihood", pipe.log_likelihood, {"images": images, "labels": [0, "bee"], "batch": 2}),
        Door("Pipeline.classify", pipe.classify, {"tokens": tokens, "labels": [0, "bee"], "through": 2, "batch": 3}),
        Door(
            "Pipeline.log_likelihood of words",
            reads.log_likelihood,
            {"tokens": tokens, "prompts": ["a", "b"], "labels": "bee", "batch": 2},
        ),
        Door("Pipeline.label", pipe.label, {"name": "bee"}),
        Door(
            "Pipeline.push_to_hub",
            _pushed,
            {"name": "owner/new", "about": "text", "license": "mit", "figures": [], "samples": 1, "out": "page"},
        ),
        Door("Generated.save", pipe.generate([0]).save, {"directory": "new"}),
        Door(
            "data.load",
            data.load,
            {
                "source": "pictures",
                "height": 8,
                "width": 8,
                "labels": "none",
                "captions": "names",
                "columns": None,
                "cache": None,
                "window": None,
            },
        ),
        Door("data.Cache", data.Cache, {"directory": Path("new/cache"), "size": 1000}),
        Door(
            "data.wrap",
            data.wrap,
            {
                "dataset": [(images[0], 0), (images[1], 1)],
                "height": 8,
                "width": 8,
                "validation": None,
                "classes": ["a", "b"],
            },
        ),
        Door("data.Columns", data.Columns, {"image": "a", "label": "b", "caption": "c", "outside": True}),
        Door("Pictures.batch", data.load("pictures", height=8, width=8).train.batch, {"indices": [0], "views": None}),
        Door("features.load", features.load, {"name_or_path": "text.pth", "device": "cpu"}),
        Door("features.read_heads", features.read_heads, {"path": "text.pth"}),
        Door(
            "features.of_module",
            features.of_module,
            {"module": torch.nn.Flatten(), "name": "n", "side": 4, "mean": (0.5, 0.5, 0.5), "deviation": (1, 1, 1)},
        ),
        Door("features.FeatureNetwork()", network, {"images_B3HW": images}),
        Door("features.PerceptualDistance", features.PerceptualDistance, {"network": network, "side": 8}),
        Door("official.load", official.load, {"vae": vae, "var": var, "num_heads": 2, "precision": "fp32"}),
        Door("official.load_tokenizer", official.load_tokenizer, {"vae": vae, "scales": [1, 2, 4]}),
        Door("official.export", official.export, {"pipe": pipe}),
        Door("official.names", official.names, {"model": tokenizer}),
        Door("linear_guidance", guidance.linear_guidance, {"guidance": 1.5}),
        Door("constant_guidance", guidance.constant_guidance, {"guidance": 1.5}),
        Door("cosine_guidance", guidance.cosine_guidance, {"guidance": 1.5}),
        Door("interval_guidance", guidance.interval_guidance, {"guidance": 1.5, "first": 0, "last": 1}),
        Door("listed_guidance", guidance.listed_guidance, {"weights": [0.0, 1.5]}),
        Door("guidance_until", guidance.guidance_until, {"guidance": 1.5, "end": 2}),
    ]


def _streamed(**arguments: Any) -> list[Any]:
    """To the end, with the pictures."""
    return [step.preview() for step in pipeline().stream(**arguments)]


def _pushed(out: Any, **arguments: Any) -> str:
    """Written to a directory, never uploaded."""
    return pipeline().push_to_hub(**arguments, out="page" if out is None else out)


def _brightness(step: Any) -> Any:
    return step.preview().mean(dim=(1, 2, 3))


def _reranked(**arguments: Any) -> Any:
    """One map of several."""
    return pipeline().generate([0], rerank=Rerank(**arguments))


def _from_preset(**arguments: Any) -> Pipeline:
    """Shapes alone: quick for every preset."""
    return Pipeline.from_preset(**arguments, device="meta")


# ---- wrong values ----------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 99, 10**12, 10**40, -(10**40), 9.5, 1e300, 1 + 2j, 2**63, -(2**63)]),
    st.floats(),
    st.sampled_from(
        ["", "4GB", "nowhere", "0", "é\udcff", "a\0b", "x" * 300, "emoji", "owner/name", "meta", "text.pth"]
    ),
    st.binary(max_size=3),
)
OBJECTS = st.sampled_from([object(), print, lambda k, scales: "much", Path(), Path("nowhere"), ..., range(3), {1}])
ARRAYS = st.builds(
    lambda shape, kind: torch.ones(shape).to(kind),
    st.sampled_from(
        [(), (0,), (3,), (2, 3), (3, 8, 8), (2, 3, 8, 8), (2, 21), (0, 3, 8, 8), (2, 8, 4, 4), (1, 2, 3, 4, 5)]
    ),
    st.sampled_from(
        [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
    ),
)
NUMPY = st.sampled_from(
    [np.int64(7), np.float32(0.5), np.str_("bee"), np.zeros((8, 8, 3)), np.array([None]), np.arange(3)]
)
PICTURES = st.sampled_from([Image.new(mode, (9, 7)) for mode in ("RGB", "1", "P", "I;16", "F", "CMYK", "LA")])
SINGLE = st.one_of(SCALARS, OBJECTS, ARRAYS, NUMPY, PICTURES)
WRONG = st.one_of(
    SINGLE,
    st.lists(SINGLE, max_size=3),
    st.tuples(SINGLE, SINGLE),
    st.dictionaries(st.text(max_size=3), SINGLE, max_size=2),
)


@st.composite
def calls(draw: st.DrawFn, known: list[Door]) -> tuple[Door, dict[str, Any]]:
    """A door and its arguments, one or two of them wrong."""
    door = draw(st.sampled_from(known))
    names = draw(st.lists(st.sampled_from(sorted(door.arguments)), min_size=1, max_size=2, unique=True))
    return door, {**door.arguments, **{name: draw(WRONG) for name in names}}


# ---- running ---------------------------------------------------------------------------------------------------------


def complaint(door: Door, arguments: dict[str, Any]) -> str | None:
    """What is wrong with how a call ends; None if it ends as it should."""
    try:
        door.function(**arguments)
    except (InputError, IndexError) as error:
        told = str(error)
        whole = len(told.split()) >= 4 and len(told) <= LONGEST and told.isprintable()
        return None if whole else f"no sentence: {told[:300]!r}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}, line {frame.lineno}"
        return f"{type(error).__name__} ({where})\n    {' '.join(str(error).split())[:200]}"
    return None


@contextlib.contextmanager
def world(directory: Path) -> Iterator[None]:
    """Inside, the process is in a directory with a few pictures and a file that is no weights."""
    with contextlib.chdir(directory), mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        Path("text.pth").write_text("text")
        Path("pictures").mkdir()
        for number in range(4):
            Image.new("RGB", (9, 9), (number, 99, 9)).save(f"pictures/{number}.png")
        yield


def walk(count: int, seed: int, known: list[Door]) -> dict[str, str]:
    """So many calls; of each kind of complaint the first call, in words."""
    found: dict[str, str] = {}

    @seeded(seed)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(calls(known))
    def call(drawn: tuple[Door, dict[str, Any]]) -> None:
        door, arguments = drawn
        wrong = complaint(door, arguments)
        if wrong is not None:
            changed = {name: value for name, value in arguments.items() if value is not door.arguments[name]}
            words = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in changed.items())
            found.setdefault(f"{door.name} {wrong.partition(chr(10))[0]}", f"{door.name}({words})\n    {wrong}")

    call()
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--calls", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)):
        known = doors()
        found = walk(asked.calls, asked.seed, known)
    print("\n".join(found.values()))
    print(f"{asked.calls} calls of {len(known)} functions, {len(found)} kinds of end that are no sentence")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
