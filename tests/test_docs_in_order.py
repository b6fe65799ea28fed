"""README and docs can be followed: every console line and every Python block, in order, in one directory.

What a reader brings along (pictures, tables, the release's files) is there, every preset is small, lengths are short,
and what torchrun would start several times is started once. A line that cannot be run here is listed with its reason.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from nextscale import VAR, MultiScaleVQVAE, Pipeline, Scales, features, presets
from nextscale.cli import COMMANDS, main, memory
from nextscale.config import TokenizerConfig, TransformerConfig
from nextscale.data import emoji, figures
from nextscale.evaluation import attributes
from nextscale.features import efficientnet
from nextscale.release import convert, files

ROOT = Path(__file__).parent.parent
ORDER = (
    "index",
    *(
        "data",
        "tokenizer",
        "token-cache",
        "transformer",
        "text",
        "default-model",
        "sampling",
        "likelihood",
        "editing",
        "evaluation",
    ),
    *("studies", "release", "rivals", "training-speed", "hub"),
)
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ORDER)]
NEEDS = {  # what stands in a line that is not run here, and why
    "make ": "the repository itself; what `make demo` leaves is there",
    "-m venv": "an installation",
    "nextscale demo": "nine minutes; tests/cli/test_demo.py runs it",
    "pip install": "an installation",
    "FoundationVision/var": "the hub",
    "push owner/name --model runs/mine --license": "the hub; tests/cli/test_push.py talks to one of its own",
    "--model owner/name": "what that has pushed",
    "inception-2015": "a download",
    "s3://": "a bucket; tests/data/test_remote.py has a server of its own",
    "https://host": "likewise",
    "python benchmarks/": "minutes; each program has a test of its own, or is one",
    "nextscale bench": "the hardware, which is what is measured; tests/cli/test_bench.py runs the commands",
    "--nnodes 2": "two machines",
    "make_icon_pack": "public packages; tests/data/test_icon_pack.py runs it on small ones",
    " icons ": "what that makes",
    "all-MiniLM": "an encoder of 90 MB; tests/text/test_frozen.py makes small ones",
    "nextscale web": "a server that stays; tests/web runs it, and what docs/studio.md says",
}
SHORT = {  # options that are made short, and those that are put in to make a command short
    "train tokenizer": {"minutes": None, "steps": "1", "batch": "2"},
    "train transformer": {"minutes": None, "steps": "1", "batch": "2"},
    "evaluate generation": {"count": "9", "per-class-count": "2", "keep": "8", "batch": "9"},
    "evaluate reconstruction": {"keep": "8", "batch": "64"},
    "evaluate likelihood": {"count": "9"},
    "inspect": {"compare": "9"},
    "study tokenizers": {"minutes": None, "steps": "1 1", "only": "fsq", "dropout": "0", "count": "9", "views": "1"},
    "study scaling": {"minutes": "0.01", "depths": "1 2"},
}
ONLY_WHERE_GIVEN = ("per-class-count", "minutes", "depths")  # and not put in


@dataclasses.dataclass(frozen=True)
class Piece:
    """A console line or a block of Python, and where it stands."""

    page: str
    language: str
    text: str

    @property
    def reason(self) -> str | None:
        """Why it is not run here."""
        return next((why for part, why in NEEDS.items() if part in self.text), None) if self.is_line else None

    @property
    def is_line(self) -> bool:
        return self.language == "console"


def pieces() -> Iterator[Piece]:
    """All of them, as a reader comes by them."""
    for page in PAGES:
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            if language == "python":
                yield Piece(page.name, language, block)
            elif language == "console":
                yield from (Piece(page.name, language, line) for line in block.splitlines())


def shortened(line: str) -> list[str]:
    """The arguments of `nextscale` that a line has, behind torchrun too, with short lengths."""
    words = shlex.split(_smaller(line))
    words = words[words.index("nextscale") + 1 :]
    command = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    for option, value in SHORT.get(command, {}).items():
        words = _without(words, f"--{option}") if option in given else words
        put_in = option not in ONLY_WHERE_GIVEN and not (option == "count" and "per-class-count" in given)
        if value is not None and (option in given or put_in):
            words += [f"--{option}", *value.split()]
    return words


def _smaller(text: str) -> str:
    """The sizes of pictures that pages name, and a sweep over fewer settings."""
    return (
        text.replace("96x160", "16x24").replace("(384, 512,", "(16, 24,").replace("0 1 1.5 2 3 --top-k", "1.5 --top-k")
    )


def _without(words: list[str], option: str) -> list[str]:
    start = words.index(option)
    stop = next((place for place in range(start + 1, len(words)) if words[place].startswith("--")), len(words))
    return words[:start] + words[stop:]


# ---- what is there ---------------------------------------------------------------------------------------------------

SHARED = {"scales": Scales([1, 2, 3, 4, 6, 8]), "codebook_size": 32, "code_channels": 8}
TOKENIZER = TokenizerConfig(
    **SHARED,
    channels=32,
    multipliers=(1, 1, 1),
    residual_blocks=1,
    phi_sharing="partial",
    phi_count=4,
    distance="euclidean",
)
TRANSFORMER = TransformerConfig(
    **SHARED,
    classes=9,
    depth=2,
    width=64,
    heads=2,
    feed_forward=64,
    normalized_attention=True,
    shared_modulation=False,
)


def bring_along() -> None:
    """What the pages say a reader has."""
    for folder, names in (("pictures/train", "cat dog"), ("pictures/val", "cat dog"), ("photos", "all"), ("pets", "")):
        for name in names.split() or [""]:
            for number in range(3):
                _picture(Path(folder) / name / f"{number:04}.jpg")
    _picture(Path("cat.jpg"))
    _picture(Path("mask.png"))
    _picture(Path("dog.png"))
    shutil.copytree("photos", "imagenet-subset")
    rows = [path.relative_to("pets").as_posix() for path in sorted(Path("pets").rglob("*.jpg"))]
    table = "".join(f"{row},{('dog', 'tabby cat')[number % 2]}\n" for number, row in enumerate(rows))
    Path("pets.csv").write_text(f"file,label\n{table}")
    rows = [path.relative_to("pictures").as_posix() for path in sorted(Path("pictures").rglob("*.jpg"))]
    Path("labels.csv").write_text("file,label\n" + "".join(f"{row},{row.split('/')[1]}\n" for row in rows))
    Path("captions.csv").write_text("file,caption\n" + "".join(f"{row},a {row.split('/')[1]}\n" for row in rows))
    data_sets()
    for name in ("sizes", "errors"):
        losses = "".join(f"{10**power},{0.5 + 10 ** (-0.2 * power)}\n" for power in range(5, 10))
        Path(f"{name}.csv").write_text(f"parameters,loss\n{losses}")
    Path("prompts.txt").write_text("# for docs/text.md\nred heart\n\nthumbs up\n")
    Path("about.md").write_text("Photos of pets, taken by the reader.\n")
    Path("shards").mkdir()
    for number in range(100):
        with tarfile.open(f"shards/train-{number:03}.tar", "w") as tar:
            tar.add("cat.jpg", f"{number}.jpg")
    models()


def data_sets() -> None:
    """In the formats of docs/data.md."""
    for split in ("train", "val"):
        rows = []
        for number in range(3):
            _picture(Path(f"metadata/{split}/{number}.jpg"))
            said = {"label": number % 2, "text": f"pet {number}", "breed": f"breed {number}", "remark": "none"}
            rows.append(json.dumps({"file_name": f"{number}.jpg", **said}))
        Path(f"metadata/{split}/metadata.jsonl").write_text("\n".join(rows))
    with zipfile.ZipFile("faces.zip", "w") as archive:
        for number, path in enumerate(sorted(Path("photos").rglob("*.jpg"))):
            archive.write(path, f"00000/img{number:08}.jpg")
        archive.writestr("dataset.json", json.dumps({"labels": None}))
    np.savez("arrays.npz", np.zeros((4, 20, 20, 3), dtype=np.uint8), np.arange(4) % 2)
    pictures = [path.read_bytes() for path in sorted(Path("photos").rglob("*.jpg"))]
    table = pyarrow.table({"image": pyarrow.array(pictures), "label": [0, 1, 0], "text": ["one", "two", "three"]})
    Path("parquet").mkdir()
    for number in range(2):
        pyarrow.parquet.write_table(table, f"parquet/train-{number:05}-of-00002.parquet")
    Path("imagenet").mkdir()
    with tarfile.open("imagenet/ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in ("n01440764", "n02119789"):
            with tarfile.open(f"{wnid}.tar", "w") as inner:
                inner.add("cat.jpg", f"{wnid}_1.JPEG")
            outer.add(f"{wnid}.tar")
    names = [path.relative_to("photos").as_posix() for path in sorted(Path("photos").rglob("*.jpg"))]
    Path("photos.jsonl").write_text("\n".join(json.dumps({"file": name, "kind": name[-5]}) for name in names))


def models() -> None:
    """What `make demo` leaves, a model of the reader's photos, and files as the public release's and its trainer's."""
    tokenizer = MultiScaleVQVAE(TOKENIZER)
    Pipeline(tokenizer, VAR(TRANSFORMER), classes=emoji.classes(), precision="fp32").save("runs/demo")
    Pipeline(tokenizer, VAR(dataclasses.replace(TRANSFORMER, classes=1)), classes=["all"]).save("runs/photos")
    vae = convert.exported(tokenizer)
    var = convert.exported(VAR(dataclasses.replace(TRANSFORMER, classes=1000)))
    for folder in (Path(), Path("downloads")):
        folder.mkdir(exist_ok=True)
        files.write(folder / "vae_ch160v4096z32.pth", vae)
        files.write(folder / "var_d16.pth", var)
    torch.save({"trainer": {"vae_local": vae, "var_wo_ddp": var}}, "ar-ckpt-last.pth")
    Path("imagenet_class_index.json").write_text(
        json.dumps({number: (f"n{1440764 + number:08}", f"class {number}") for number in range(1000)})
    )
    wide = {"scales": Scales([1, 2, 3, (4, 6)])}
    files.write(Path("vae.pth"), convert.exported(MultiScaleVQVAE(dataclasses.replace(TOKENIZER, **wide))))
    twelve = dataclasses.replace(TRANSFORMER, **wide, width=48, heads=12, normalized_attention=False)
    files.write(Path("var.pth"), convert.exported(VAR(twelve)))


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of a reader who has these, where all presets are small and few emoji are embedded."""
    get = presets.get
    small = {"tokenizer": TOKENIZER, "transformer": TRANSFORMER}
    monkeypatch.setattr(presets, "get", lambda name: dataclasses.replace(get(name), **small))
    _fewer_emoji(monkeypatch)
    train, held_out = figures.numbers()
    monkeypatch.setattr(attributes.learn, "__kwdefaults__", attributes.learn.__kwdefaults__ | {"steps": 2, "count": 9})
    monkeypatch.setattr(figures, "numbers", lambda: (train[:40], held_out[::100]))
    monkeypatch.setattr(features.FeatureNetwork, "side", 32)
    monkeypatch.setattr(efficientnet, "load", cache(efficientnet.load))
    monkeypatch.setattr(memory, "keep_freed", lambda: None)
    monkeypatch.chdir(tmp_path)
    bring_along()
    return tmp_path


def _fewer_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fortieth: of all groups, and of both splits."""
    packed, entries = (emoji.PACK / "pictures.bin").read_bytes(), emoji.entries()
    ends = [*accumulate((entry.bytes for entry in entries), initial=0)]
    blobs = [packed[start:stop] for start, stop in pairwise(ends)][::40]

    def decoded(height: int, width: int) -> torch.Tensor:
        return torch.stack([emoji._decode(blob, height=height, width=width) for blob in blobs])

    monkeypatch.setattr(emoji, "entries", lambda: entries[::40])
    monkeypatch.setattr(emoji, "decoded", decoded)


@pytest.mark.slow
def test_every_line_and_block_works_in_order(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ends with status 0; Python goes on in the names of its page."""
    failed, names = [], {page.name: {} for page in PAGES}
    for piece in pieces():
        if piece.reason is not None:
            continue
        told = _line(piece.text, capsys) if piece.is_line else _block(piece.text, names[piece.page])
        failed += [f"{piece.page}: {piece.text}\n    {told}"] if told else []
    assert not failed, "\n".join(failed)


def _line(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    status = main(shortened(line))
    return "" if status == 0 else capsys.readouterr().err


def _block(text: str, names: dict[str, object]) -> str:
    if "def colours" in text:
        Path("judges.py").write_text(text)  # which the page calls it
    try:
        exec(compile(_smaller(text), "block", "exec"), names)
    except Exception as error:  # whatever it is, it is told with the others
        return f"{type(error).__name__}: {error}"
    return ""


def test_no_reason_is_left_over() -> None:
    """Each is that of a line."""
    assert {piece.reason for piece in pieces()} - {None} == set(NEEDS.values())
