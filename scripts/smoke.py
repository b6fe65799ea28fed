"""Build the package, install it outside the repository, and run every command once; tells how long each took.

    .venv/bin/python scripts/smoke.py [--fresh] [--only TEXT]

The wheel is built from the sdist, as `python -m build` does, and installed into an environment that shares the
dependencies of this interpreter but not its nextscale; `--fresh` downloads them instead. The commands run in an empty
directory, on pictures drawn here and on the embedded ones, with the hub switched off. Exit status 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "web,text,figures"
SHORT = "--steps 2 --batch 2"
LINES = (
    "nextscale --version",
    "nextscale presets",
    f"nextscale train tokenizer --data pictures --preset emoji-32 {SHORT} --out runs/tokenizer",
    "nextscale encode pictures --tokenizer runs/tokenizer --out runs/tokens",
    f"nextscale train transformer --data runs/tokens --tokenizer runs/tokenizer --preset emoji-32 {SHORT} --out runs/x",
    f"nextscale train transformer --data pictures --captions names --text embedded --tokenizer runs/tokenizer {SHORT}"
    " --out runs/words",
    "nextscale sample --model runs/x --growing",
    "nextscale sample --model runs/words --prompt 'a cat' --out samples/words",
    "nextscale edit pictures/cat/a-cat-00.png --model runs/x --box 8,8,24,24 --out edits",
    "nextscale reconstruct pictures/cat/a-cat-00.png --model runs/x",
    "nextscale evaluate reconstruction --model runs/x --data pictures",
    "nextscale evaluate generation --model runs/x --reference pictures --count 8 --keep 8 --json card.json",
    "nextscale study tokenizers --data pictures --preset emoji-32 --steps 1 1 --only fsq --dropout 0 --count 8",
    "nextscale study scaling --points sizes.csv",
    "nextscale study scaling --data runs/tokens --tokenizer runs/tokenizer --depths 1 2 --steps 2 --out runs/sizes",
    "nextscale evaluate likelihood --model runs/x --data pictures",
    "nextscale inspect pictures/cat/a-cat-00.png --model runs/x",
    "nextscale bench sample --preset emoji-32 --batch 1 --repeats 1",
    "nextscale bench train --preset emoji-32 --batch 1 --repeats 1",
    "nextscale bench tokenizer --preset emoji-32 --batch 1 --repeats 1",
    "nextscale convert --model runs/x --out vae.pth var.pth",
    "nextscale push owner/name --model runs/x --figures card.json --samples 2 --out page",
    "nextscale demo --minutes 0.02",
    "nextscale web --model runs/x",
)
PATIENCE = 600  # seconds a command may take


def build(folder: Path) -> Path:
    """The wheel, made from the sdist; both are then in the folder."""
    _run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)], ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", str(folder), str(sdist)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path, *, fresh: bool = False) -> Path:
    """The folder of programs of a new environment with the wheel in it."""
    venv.create(folder, with_pip=fresh)
    python, programs = folder / "bin" / "python", folder / "bin"
    if fresh:
        pins = ["--constraint", str(ROOT / "constraints.txt")]
        _run([str(python), "-m", "pip", "install", "--quiet", *pins, f"{wheel}[{EXTRAS}]"], folder)
        return programs
    offline = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "pip", "--python", str(python), "install", *offline, str(wheel)], folder)
    # A path named in a .pth file is searched, but .pth files in it are not read: an editable install stays hidden.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return programs


def environment(programs: Path) -> dict[str, str]:
    """Of the commands: nothing that leads to the source tree or to a network."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


def draw(folder: Path) -> None:
    """Pictures of two classes, smooth and no two alike."""
    from PIL import Image

    for number in range(12):
        place = folder / "pictures" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        ramp = Image.linear_gradient("L").rotate(30 * number).resize((40, 40))
        picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.point(lambda value: 255 - value)))
        picture.save(place / f"a-{place.name}-{number:02}.png")
    sizes = "".join(f"{10**power},{4.5 + 50 * 10 ** (-0.23 * power)}\n" for power in range(6, 10))
    (folder / "sizes.csv").write_text(f"parameters,loss\n{sizes}")


def outcomes(programs: Path, folder: Path, only: str = "") -> Iterator[tuple[str, float, str]]:
    """Each line with the seconds it took and what it said if it failed, else nothing."""
    draw(folder)
    for line in LINES:
        if only in line:
            started = time.monotonic()
            told = (_studio if line.startswith("nextscale web") else _command)(line, programs, folder)
            yield line, time.monotonic() - started, told


def _command(line: str, programs: Path, folder: Path) -> str:
    done = subprocess.run(
        _words(line, programs),
        cwd=folder,
        env=environment(programs),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return "" if done.returncode == 0 else f"status {done.returncode}: {done.stderr or done.stdout}"


def _studio(line: str, programs: Path, folder: Path) -> str:
    """Start it, ask for its page, and stop it."""
    with subprocess.Popen(
        _words(line, programs), cwd=folder, env=environment(programs), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        try:
            with urllib.request.urlopen(said.split()[1], timeout=60) as answer:
                page = answer.read()
        except (IndexError, OSError) as error:
            process.kill()
            return f"no page: {said}{error}"
        process.send_signal(signal.SIGTERM)  # which a shell never lets it ignore, unlike SIGINT
        status = process.wait(PATIENCE)
    return "" if b"nextscale" in page and status == 130 else f"status {status}, a page of {len(page)} bytes"


def _words(line: str, programs: Path) -> list[str]:
    program, *words = shlex.split(line)
    return [str(programs / program), *words]


def _run(words: list[str], folder: Path) -> None:
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--fresh", action="store_true", help="download the dependencies, as pip does for users")
    options.add_argument("--only", default="", help="lines that this stands in; each needs what those above it make")
    given = options.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dist").mkdir()
        (folder / "room").mkdir()
        wheel = build(folder / "dist")
        for file in sorted((folder / "dist").iterdir()):
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
        programs = install(wheel, folder / "environment", fresh=given.fresh)
        for line, seconds, told in outcomes(programs, folder / "room", given.only):
            print(f"{seconds:6.1f} s  {line}", flush=True)
            failed += bool(told)
            if told:
                print(f"    {told}", flush=True)
    print(f"{failed} commands failed" if failed else "every command ran from the installed wheel")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
