"""Attribute accuracy: whether generated figures have what was asked for, read off by a classifier of real ones.

The reader is a small convolutional network with an answer for each attribute of each kind of `data.figures`, trained on
figures of its own: of all pairs of colour and part, for it is to judge the unseen ones, but without the attributes of a
held-out figure. How well it reads these bounds what can be read off generated ones, so both stand side by side. Knows
no generator: what paints is a function from prompts and seeds to pictures.

Letters of shapes: N pictures, n of a batch, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.data import Pictures, Progress
from nextscale.data.figures import KINDS, Drawing, Figure, of_name, others
from nextscale.data.pictures import windows
from nextscale.data.reading import MARGIN
from nextscale.errors import InputError
from nextscale.evaluation.intervals import Interval, interval

KIND, ALL = "kind", "all"
CHANNELS = (32, 64, 128, 128)
STEPS, BATCH, RATE = 600, 64, 2e-3
COUNT = 6000  # figures that a reader learns from

# prompts, seeds -> images (n, 3, H, W) in [-1, 1]
Paint = Callable[[Sequence[str], Sequence[int]], Tensor]
HEADS = {
    KIND: len(KINDS),
    **{f"{kind.name} {each.name}": len(each.values) for kind in KINDS for each in kind.attributes},
}


class Reader(nn.Module):
    """Pictures of figures to logits, by `HEADS`: the kind, and each attribute of each kind."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *CHANNELS)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU())
                for before, after in zip(widths, CHANNELS, strict=False)
            )
        )
        self.pooled = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Sequential(nn.LazyLinear(256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, count) for name, count in HEADS.items()})

    def forward(self, images_n3HW: Tensor) -> dict[str, Tensor]:
        """Logits (n, values) by head, of pictures in [-1, 1]."""
        hidden_nD = self.hidden(self.pooled(self.layers(images_n3HW)).flatten(1))
        return {name: head(hidden_nD) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images_n3HW: Tensor) -> list[dict[str, str]]:
        """What each picture shows: its kind, and that kind's attributes in the words of `Figure.values`."""
        found = {name: logits.argmax(dim=1).tolist() for name, logits in self(images_n3HW).items()}
        return [self._words(found, place) for place in range(len(images_n3HW))]

    @staticmethod
    def _words(found: Mapping[str, Sequence[int]], place: int) -> dict[str, str]:
        kind = KINDS[found[KIND][place]]
        named = {each.name: list(each.values)[found[f"{kind.name} {each.name}"][place]] for each in kind.attributes}
        return {KIND: kind.name, **named}


def learn(
    *,
    height: int,
    width: int,
    steps: int = STEPS,
    count: int = COUNT,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Reader:
    """A reader of figures of one size, trained on `count` of them for minutes; one seed makes one reader."""
    figures = others(count)
    fetch = Drawing(figures=figures, side=math.ceil(MARGIN * max(height, width)))
    targets = _targets(figures, device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader().to(device)
        reader(torch.zeros(1, 3, height, width, device=device))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for step in range(steps):
        index_n = torch.randint(count, (BATCH,), generator=generator)
        views = torch.rand((BATCH, 3), generator=generator)
        images = windows(fetch(index_n.tolist())[1], views, height=height, width=width)
        loss = _loss(reader(images.to(device)), {name: target[index_n] for name, target in targets.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    return reader.eval()


def _targets(figures: Sequence[Figure], device: str) -> dict[str, Tensor]:
    """The right answers (N,) by head; -100, which losses leave out, for attributes of other kinds."""
    targets = {name: torch.full((len(figures),), -100) for name in HEADS}
    for place, figure in enumerate(figures):
        targets[KIND][place] = KINDS.index(figure.kind)
        for each in figure.kind.attributes:
            targets[f"{figure.kind.name} {each.name}"][place] = list(each.values).index(figure.values[each.name])
    return {name: target.to(device) for name, target in targets.items()}


def _loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of all answers that there are, a mean over them."""
    sums = [F.cross_entropy(logits[name], target, reduction="sum") for name, target in targets.items()]
    return torch.stack(sums).sum() / sum((target >= 0).sum() for target in targets.values())


# ---- accuracy --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Share:
    """How often an attribute is as asked for, with its 95 % interval."""

    share: float
    interval: Interval
    count: int


Accuracy = Mapping[str, Share]
"""By attribute, the kind among them, and "all" for all attributes of a figure at once."""


def accuracy(found: Sequence[Mapping[str, str]], wanted: Sequence[Figure], *, seed: int = 0) -> Accuracy:
    """How often what was read is what was wanted; of a figure of another kind nothing is right.

    Raises `InputError` for none, and for another number of readings.
    """
    if not wanted or len(found) != len(wanted):
        raise InputError(f"expected a reading for each figure, got {len(found)} for {len(wanted)}")
    right: dict[str, list[bool]] = {}
    for read, figure in zip(found, wanted, strict=True):
        same = read[KIND] == figure.kind.name
        told = {name: same and read[name] == value for name, value in figure.values.items()}
        for name, is_right in {KIND: same, **told, ALL: same and all(told.values())}.items():
            right.setdefault(name, []).append(is_right)
    generator = torch.Generator().manual_seed(seed)
    return {name: _share(torch.tensor(values), generator) for name, values in right.items()}


def _share(right_N: Tensor, generator: torch.Generator) -> Share:
    values = right_N.double()
    return Share(share=float(values.mean()), interval=interval(values, generator=generator), count=len(values))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Accuracy for one sort of pairs."""

    real: Accuracy
    """Of real figures, which bounds that of generated ones."""
    generated: Accuracy | None = None
    others: Accuracy | None = None
    """Of generated ones, held against the prompt of another: what comes of not reading."""


def judge(
    reader: Reader,
    held_out: Pictures,
    *,
    paint: Paint | None = None,
    count: int | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> dict[bool, Judged]:
    """Accuracy on held-out figures, by whether their pair of colour and part is an unseen one.

    Arguments:
        paint: what makes pictures of prompts, the sentence of each figure with the seed of its place; None judges real
            figures alone.
        count: of figures of either sort, the first ones; None takes all.
        batch: pictures at a time.
    """
    figures = list(map(of_name, held_out.names))
    sorts = {
        unseen: [place for place, figure in enumerate(figures) if figure.is_unseen == unseen][:count]
        for unseen in (False, True)
    }
    judged, total, done = {}, sum(map(len, sorts.values())), 0
    for unseen, places in sorts.items():
        wanted = [figures[place] for place in places]
        real, made = list[dict[str, str]](), list[dict[str, str]]()
        device = next(reader.parameters()).device
        for start in range(0, len(places), batch):
            part = slice(start, start + batch)
            real += reader.read(held_out.batch(places[part])[0].to(device))
            if paint is not None:
                images = paint([figure.captions()[0] for figure in wanted[part]], places[part])
                made += reader.read(images.to(device))
            done += len(places[part])
            if progress is not None:
                progress(done, total)
        judged[unseen] = Judged(
            real=accuracy(real, wanted),
            generated=accuracy(made, wanted) if made else None,
            others=accuracy(made, [*wanted[1:], *wanted[:1]]) if made else None,
        )
    return judged
