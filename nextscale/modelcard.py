"""The page that goes with a published model: what it is, what it was trained on and how, and what was measured.

Text alone, which a hub shows as README.md. Figures are copied from the JSON that `nextscale evaluate` writes, the
recipe from the directory of the training run; nothing is measured here. Of paths only the last part is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale import __version__
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.errors import InputError, printable
from nextscale.files.checkpoint import read_json

CLASSES = 60  # names shown; config.json has them all
TAGS = ("nextscale", "image-generation")
OF_SCALES = ("visual-autoregressive-modeling", "next-scale-prediction")  # tags of VAR
KINDS = {  # by order of prediction
    "scale": "A next-scale transformer with its multi-scale tokenizer (visual autoregressive modelling, "
    "[arXiv:2404.02905](https://arxiv.org/abs/2404.02905))",
    "raster": "A next-token transformer, row by row, with its tokenizer",
    "refined": "A transformer of global refinement (GRN, [arXiv:2604.13030](https://arxiv.org/abs/2604.13030)) with "
    "its tokenizer",
    "masked": "A masked transformer (MaskGIT, [arXiv:2202.04200](https://arxiv.org/abs/2202.04200)) with its tokenizer",
}
SHAPES = ("tokenizer", "transformer")  # in a run's settings: architectures, which config.json tells
PRESERVED = re.compile(r"[/~\\]|[A-Za-z]:")  # how a path begins that says where something lies on a machine


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the model itself tells."""

    name: str
    """`owner/name`."""
    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    classes: tuple[str, ...]
    fingerprint: str
    """`Pipeline.fingerprint`."""
    dtype: str
    """What the transformer's blocks are stored in."""
    encoder: str | None = None
    """The frozen text encoder that it was trained with, by its last name."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What its maker adds. Raises `InputError` for a licence that is no identifier."""

    about: str = ""
    """Markdown: where the pictures come from, whom to thank, what the model is for."""
    license: str | None = None
    """Of the weights, as the hub spells it: mit, apache-2.0, cc-by-4.0 ..."""
    run: Path | None = None
    """Directory of the training run."""
    figures: tuple[Path, ...] = ()
    """Files that `nextscale evaluate ... --json FILE` wrote."""

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(f"license: expected an identifier such as mit or cc-by-4.0, got {self.license!r}")


def without_places(reader: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a reader, with the last name of a frozen encoder's folder instead of where it lies."""
    encoder = encoder_of(reader)
    return dict(reader) if encoder is None else {**reader, "text_encoder": reader["text_encoder"] | {"source": encoder}}


def encoder_of(reader: Mapping[str, Any]) -> str | None:
    """The name of a frozen encoder, of a folder the last part; None for other readers."""
    return _without_place(reader["text_encoder"]["source"]) if "text_encoder" in reader else None


def page(facts: Facts, told: Told, samples: str | None) -> str:
    """README.md of a model repository.

    Arguments:
        samples: one line that says what samples.png shows; None where there is none.

    Raises `InputError` for a run or figures that cannot be read, or are something else.
    """
    parts = [
        *(_front_matter(facts, told), f"# {facts.name.partition('/')[2]}"),
        *([] if samples is None else ["![samples](samples.png)", _cell(samples)]),
        *(_summary(facts), told.about.strip(), _usage(facts), _architecture(facts)),
        *([] if told.run is None else _training(told.run)),
        *(_measured(file) for file in told.figures),
        f"Written by nextscale {__version__}; `config.json` holds the architecture and all names of classes.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(facts: Facts, told: Told) -> str:
    """What the hub reads: YAML."""
    task = "unconditional-image-generation" if facts.transformer.text is None else "text-to-image"
    licence = [] if told.license is None else [f"license: {told.license}"]
    tags = [f"  - {tag}" for tag in (*TAGS, *(OF_SCALES if facts.transformer.order == "scale" else ()))]
    return "\n".join(["---", "library_name: nextscale", f"pipeline_tag: {task}", *licence, "tags:", *tags, "---"])


def _summary(facts: Facts) -> str:
    size, model = facts.tokenizer, facts.transformer
    reads = "" if model.text is None else " and from prompts"
    some = f"{model.classes} classes" if model.classes > 1 else "one class"
    steps = f", coarse to fine, in {len(size.scales)} steps" if model.order == "scale" else ""
    return f"{KINDS[model.order]}. It paints pictures of {size.width}×{size.height} px of {some}{reads}{steps}."


def _usage(facts: Facts) -> str:
    """Lines to paste."""
    asked = "prompts=['a red heart']" if facts.transformer.text is not None else "labels=[0]"
    option = "--prompt 'a red heart'" if facts.transformer.text is not None else "--label-index 0"
    return f"""## Use

```python
import nextscale

pipe = nextscale.Pipeline.load("{facts.name}")
pipe.generate({asked}, seeds=[0]).save("pictures")
```

```console
nextscale sample --model {facts.name} {option} --count 4
```"""


def _architecture(facts: Facts) -> str:
    size, model = facts.tokenizer, facts.transformer
    rows = [
        ("pictures", f"{size.width}×{size.height} px"),
        ("scales", f"{size.scales} ({size.scales.total} tokens)"),
        ("codes", f"{size.codebook_size:,} of {size.code_channels} channels ({size.quantizer})"),
        ("tokenizer", f"{size.parameters / 1e6:.1f} M parameters"),
        ("transformer", f"{model.parameters / 1e6:.1f} M parameters, depth {model.depth}, width {model.width}"),
        *([] if model.text is None else [("text", f"up to {model.text.tokens} pieces of a prompt")]),
        *([] if facts.encoder is None else [("text encoder", f"{facts.encoder}, frozen, not part of this model")]),
        ("stored as", facts.dtype),
        ("fingerprint", facts.fingerprint),
    ]
    names = ", ".join(facts.classes[:CLASSES]) + (", …" if len(facts.classes) > CLASSES else "")
    return f"## Model\n\n{_table(('', ''), rows)}\n\nClasses: {_cell(names)}"


# ---- training --------------------------------------------------------------------------------------------------------


def _training(run: Path) -> list[str]:
    """Data and recipe of the second stage, and of the first where its run lies inside."""
    record = _record(run)
    parts = [f"## Training\n\n{_counts(run)}", _recipe("Transformer", record)]
    first = run / "tokenizer"
    return [*parts, *([_recipe("Tokenizer", _record(first))] if (first / "run.json").exists() else [])]


def _record(run: Path) -> dict[str, Any]:
    record = read_json(run / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise InputError(f"run: expected the directory of a training run, got {run}, whose run.json is none of ours")
    return record


def _counts(run: Path) -> str:
    """How many pictures there were."""
    data = read_json(run / "data.json")
    if not isinstance(data, dict) or not {"train", "validation"} <= data.keys():
        raise InputError(f"run: expected the directory of a training run, got {run}, whose data.json is none of ours")
    return f"{data['train']:,} training pictures and {data['validation']:,} held out."


def _recipe(stage: str, record: Mapping[str, Any]) -> str:
    """Every setting of a run, folded away behind how long it took."""
    settings = {name: value for name, value in record["settings"].items() if name not in SHAPES}
    rows = [*_flat(settings, ""), *((f"version of {name}", value) for name, value in _versions(record))]
    steps = f"{record['steps']:,} steps" if "steps" in record else "a run that is not finished"
    return f"<details><summary>{stage}: {steps}</summary>\n\n{_table(('setting', 'value'), rows)}\n\n</details>"


def _versions(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of the libraries, in the last sitting."""
    sittings = record.get("versions") or [{}]
    return [(str(name), str(value)) for name, value in sittings[-1].items()]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """`recipe.optimization.batch` and its value, ..."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _without_place(value)


def _without_place(value: Any) -> str:
    """A value as it is shown: of a path on somebody's machine only the last part."""
    if isinstance(value, list):
        return ", ".join(map(_without_place, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return Path(text).name if PRESERVED.match(text) else text


# ---- figures ---------------------------------------------------------------------------------------------------------


def _measured(file: Path) -> str:
    """A table of one evaluation, and the protocol it was made by."""
    values = read_json(file)
    try:
        result = values["results"][values["best"]] if "results" in values else values
        rows = list(_figures(result))
        told, warnings = list(_protocol(result["card"])), [f"- {warning}" for warning in result["warnings"]]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise InputError(f"figures: expected what nextscale evaluate wrote as --json, got {file}") from None
    title = f"## Evaluation: {'generation' if 'model' in result['card'] else 'reconstruction'}"
    kept = ["Keep in mind:\n\n" + "\n".join(map(_cell, warnings))] if warnings else []
    return "\n\n".join([title, _table(("figure", "value"), rows), "\n".join(told), *kept])


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a result: under their names, and where there are rows of prompts, whose and of which kind."""
    for figure in result.get("figures", {}).values():
        yield figure["name"], _value(figure)
    for row in [*result.get("rows", ()), *result.get("clip", ())]:
        for figure in row["figures"].values():
            yield f"{figure['name']}, {row['kind']} prompts, {row['whose']}", _value(figure)


def _value(figure: Mapping[str, Any]) -> str:
    interval = "" if figure["low"] is None else f" ({figure['low']:.4g} … {figure['high']:.4g})"
    return f"{figure['value']:.4g}{interval}"


def _protocol(card: Mapping[str, Any]) -> Iterator[str]:
    """What a figure has to come with to be believed, a line each."""
    reference, network = card["reference"], card["network"]
    yield f"- pictures: {card['pictures']:,}"
    if "setting" in card:
        drawn = {name: _without_place(value) for name, value in card["setting"].items() if value is not None}
        yield f"- sampling: {_cell(', '.join(f'{name} {value}' for name, value in drawn.items()))}"
    count = "" if reference["pictures"] is None else f", {reference['pictures']:,} pictures"
    yield f"- reference: {_cell(_without_place(reference['name']))}{count} (fingerprint {reference['fingerprint']})"
    yield f"- features: {_cell(_without_place(network['name']))} at {network['side']} px"


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *((_cell(name), _cell(value)) for name, value in rows)]
    return "\n".join(f"| {name} | {value} |" for name, value in lines)


def _cell(text: str) -> str:
    """On one line, and with nothing in it that ends a cell or begins a tag."""
    return " ".join(printable(text).replace("|", "\\|").replace("<", "&lt;").split())
