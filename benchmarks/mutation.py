"""Changes the code in one place at a time and shows which changes the tests do not notice.

    pip install -e '.[mutation]'
    nice -n 15 python benchmarks/mutation.py                        every module below, one after the other
    nice -n 15 python benchmarks/mutation.py quantizer guidance     some of them
    nice -n 15 python benchmarks/mutation.py quantizer --again      only what survived the last time

Each module is changed by mutmut and tried on its own tests and their neighbours in forks of a process that has imported
torch. Text of messages and annotations stay as they are (`[tool.mutmut]` in pyproject.toml). Prints what survived as
differences, and a table; what cannot be noticed is listed in tests/mutants.md. Works in a folder of its own, which
keeps results between runs. Run it from the folder of the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import libcst
from mutmut import __main__ as mutmut
from mutmut import configuration
from mutmut.mutation import diff_apply
from mutmut.mutation.file_mutation import MutationVisitor

REPOSITORY = Path(__file__).resolve().parents[1]
# Thousands of draws for each change: what they show is shown by formulas, too.
SIMULATIONS = "not what_other and not hold and not resampling and not theirs and not too_wide"
MODULES = {
    "guidance": ("sampling/guidance.py", ["sampling/test_guidance.py"]),
    "attention": ("transformer/attention.py", ["transformer/test_attention.py"]),
    "quantizer": ("tokenizer/quantizer.py", ["tokenizer/test_quantizer.py", "tokenizer/test_rescaled.py"]),
    "tokenizer": ("tokenizer/model.py", ["tokenizer/test_model.py"]),
    "transformer": ("transformer/model.py", ["transformer/test_model.py", "transformer/test_layers.py"]),
    "loop": ("sampling/loop.py", ["sampling/test_loop.py"]),
    "muon": ("training/muon.py", ["training/test_muon.py"]),
    "optimization": ("training/optimization.py", ["training/test_optimization.py"]),
    "statistics": ("evaluation/statistics.py", ["evaluation/test_statistics.py"]),
    "distances": ("evaluation/distances.py", ["evaluation/test_distances.py"]),
    "intervals": ("evaluation/intervals.py", ["evaluation/test_intervals.py"]),
}
# What mutmut leaves alone because a decorator might register the function: ours only set a mode of torch's.
HARMLESS = ("torch.no_grad()", "torch.inference_mode()", "_disable_dynamo")
NOTICED = (1, 3, 24, 36, 152, 255, -24, -11)  # exit statuses of tests that failed, took too long or crashed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", choices=[*MODULES, "all"], default="all", help="all unless told")
    parser.add_argument("--again", action="store_true", help="only what survived the last time")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "mutants", help="folder for copies and results")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        run_inside(arguments.inside, again=arguments.again)
        return
    names = list(MODULES) if "all" in arguments.modules else arguments.modules
    rows = [measured(name, arguments.work / name, again=arguments.again) for name in names]
    print(f"{'module':14}{'mutants':>9}{'noticed':>9}{'survived':>10}")
    for name, counts in rows:
        print(f"{name:14}{counts.total():9}{counts['noticed']:9}{counts['survived']:10}")


def measured(name: str, work: Path, *, again: bool) -> tuple[str, Counter[str]]:
    """Run mutmut over one module in a process of its own, print what survived; how many mutants were noticed."""
    work.mkdir(parents=True, exist_ok=True)
    for part in ("nextscale", "tests", "benchmarks", "pyproject.toml"):
        if not (work / part).is_symlink():
            (work / part).symlink_to(REPOSITORY / part)
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", name, *(["--again"] if again else [])]
    with (work / "mutmut.log").open("w") as log:  # a line for each turn of its spinner
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=work, stdout=log, stderr=subprocess.STDOUT, env=one_thread, check=False)
    if done.returncode:
        raise SystemExit((work / "mutmut.log").read_text()[-2000:])
    codes = results(name, work)
    for mutant, code in codes.items():
        if code not in NOTICED:
            print(difference(name, mutant, work), flush=True)
    return name, Counter("noticed" if code in NOTICED else "survived" for code in codes.values())


def results(name: str, work: Path = Path()) -> dict[str, int]:
    """The exit status of the tests for each mutant, by its name."""
    path = work / "mutants" / "nextscale" / f"{MODULES[name][0]}.meta"
    return json.loads(path.read_text())["exit_code_by_key"] if path.exists() else {}


def difference(name: str, mutant: str, work: Path) -> str:
    """The name of a mutant, and the lines that it changes."""
    with contextlib.chdir(work):
        lines = diff_apply.get_diff_for_mutant(mutant, path=Path("nextscale") / MODULES[name][0]).splitlines()
    changed = [line for line in lines if line[:1] in ("-", "+") and line[:3] not in ("---", "+++")]
    return "\n    ".join([mutant.removeprefix("nextscale."), *changed])


def run_inside(name: str, *, again: bool) -> None:
    """In the folder of a module: make its mutants and try them."""
    allow_harmless_decorators()
    file, tests = MODULES[name]
    configuration._config = dataclasses.replace(
        configuration.config(),
        only_mutate=[f"nextscale/{file}"],
        pytest_add_cli_args=["-k", SIMULATIONS] if file.startswith("evaluation") else [],
        pytest_add_cli_args_test_selection=[f"tests/{test}" for test in tests],
    )
    survivors = [mutant for mutant, code in results(name).items() if code not in NOTICED]
    if survivors or not again:
        mutmut._run(survivors if again else [], max_children=1)


def allow_harmless_decorators() -> None:
    """Let mutmut change functions under decorators that only set a mode."""
    skip, module = MutationVisitor._skip_node_and_children, libcst.Module([])

    def skip_others(visitor: MutationVisitor, node: libcst.CSTNode) -> bool:
        decorators = node.decorators if isinstance(node, libcst.FunctionDef) else ()
        if decorators and all(module.code_for_node(each.decorator) in HARMLESS for each in decorators):
            return False
        return skip(visitor, node)

    MutationVisitor._skip_node_and_children = skip_others


if __name__ == "__main__":
    main()
