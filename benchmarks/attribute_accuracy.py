"""Whether a model paints what its prompts say: the attributes of drawn figures, read off by a classifier of real ones.

    python benchmarks/attribute_accuracy.py runs/figures --count 300 --guidance 3

for a model trained on `--data figures --captions own`. Prints by attribute how often it is as asked for, in real
held-out figures (how well the classifier reads) and in generated ones, for pairs of colour and part that were trained
on and for those that were not, with 95 % intervals. Training the classifier takes two minutes on a core. With
--shuffled every picture is judged by the prompt of another: what guessing gives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from nextscale import Pipeline, data
from nextscale.evaluation import attributes
from nextscale.evaluation.attributes import Accuracy, Judged


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a model that reads text")
    parser.add_argument("--count", type=int, default=300, help="figures of seen and of unseen pairs each, 600 at most")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--shuffled", action="store_true", help="paint the prompt of another figure")
    asked = parser.parse_args()
    pipe = Pipeline.load(asked.model)
    config = pipe.tokenizer.config
    held_out = data.load("figures", height=config.height, width=config.width).validation
    reader = attributes.learn(height=config.height, width=config.width, progress=_progress)

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        prompts = [*prompts[1:], prompts[0]] if asked.shuffled else prompts
        return pipe.generate(prompts=list(prompts), seeds=list(seeds), guidance=asked.guidance).images * 2 - 1

    for line in table(attributes.judge(reader, held_out, paint=paint, count=asked.count)):
        print(line)


def _progress(done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"learning to read figures, step {done} of {total}", file=sys.stderr)


def table(judged: Mapping[bool, Judged]) -> Iterator[str]:
    """Lines of a table, a row for each attribute."""
    columns: dict[str, Accuracy] = {}
    for unseen, each in judged.items():
        pairs = "unseen" if unseen else "seen"
        columns[f"real, {pairs}"] = each.real
        columns |= {f"generated, {pairs}": each.generated} if each.generated is not None else {}
    yield " | ".join(["attribute ", *(f"{name:>21}" for name in columns)])
    for name in next(iter(columns.values())):
        shares = [column[name] for column in columns.values()]
        cells = [f"{one.share:6.1%} {one.interval.low:6.1%}-{one.interval.high:6.1%}" for one in shares]
        yield " | ".join([f"{name:10}", *(f"{cell:>21}" for cell in cells)])


if __name__ == "__main__":
    main()
