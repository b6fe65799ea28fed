"""What models make of words that no training caption has: likelihood of held-out pictures under their captions.

    python benchmarks/held_out_words.py runs/embedded runs/minilm [--data icons] [--captions own] [--batch 32]

Of the held-out pictures whose first caption has a word that is in no caption of the training pictures, the nats a token
under that caption, under no text, and under captions of others of them; of all other held-out pictures likewise. The
class is told each time. A model that understands a new word predicts its pictures better with it than with another's.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable

from nextscale import Pipeline, data
from nextscale.data.pictures import Pictures
from nextscale.evaluation import likelihood
from nextscale.evaluation.likelihood import Asked


def words(captions: Iterable[str]) -> set[str]:
    """Letters alone, whatever their case."""
    return {word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower())}


def parts(trained: Pictures, held_out: Pictures) -> dict[str, list[int]]:
    """Held-out pictures with a new word in their first caption, and the others."""
    assert trained.captions is not None
    assert held_out.captions is not None
    known = words(caption for own in trained.captions for caption in own)
    firsts = ((place, words(own[:1])) for place, own in enumerate(held_out.captions))
    chosen: dict[str, list[int]] = {"with a new word": [], "without": []}
    for place, own in firsts:
        chosen["with a new word" if own - known else "without"].append(place)
    return chosen


def chosen(wanted: Asked, places: Iterable[int]) -> Asked:
    """Some of the pictures that are asked about."""
    assert wanted.prompts is not None
    some = [*places]
    return dataclasses.replace(
        wanted,
        indices=tuple(wanted.indices[place] for place in some),
        labels=tuple(wanted.labels[place] for place in some),
        prompts=tuple(wanted.prompts[place] for place in some),
    )


def told(pipe: Pipeline, wanted: Asked, batch: int) -> list[str]:
    """Cells of a row: nats a token under own captions, and what no text and others' captions add, with intervals."""
    sizes = pipe.tokenizer.config.scales
    others, without = likelihood.under_other_captions(wanted), dataclasses.replace(wanted, prompts=("",) * len(wanted))
    assert others is not None
    own, bare, wrong = (likelihood.look(pipe, each, batch=batch) for each in (wanted, without, others))
    gains = [likelihood.caption_gain(own, each, sizes) for each in (bare, wrong)]
    return [
        f"{own.nats.sum(dim=1).mean() / sizes.total:.3f}",
        *(f"+{gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f})" for gain in gains),
    ]


def main() -> None:
    """A Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", default="icons")
    parser.add_argument("--captions", default="own")
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    print("| model | held-out pictures | own caption | no text | captions of others |\n|---|---|---|---|---|")
    for model in asked.models:
        pipe = Pipeline.load(model)
        size = pipe.tokenizer.config
        found = data.load(asked.data, height=size.height, width=size.width, captions=asked.captions)
        every = likelihood.asked(pipe, found.validation, most=len(found.validation))
        for name, places in parts(found.train, found.validation).items():
            cells = told(pipe, chosen(every, places), asked.batch)
            print(f"| {model} | {len(places)} {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
