"""What the studio bears: how soon it is ready, fifty requests of eight clients, and bad uploads, with its memory.

    python benchmarks/studio_load.py [--clients 8] [--requests 50] [--model DIR]

Starts `nextscale web` with a small model of random weights (or the given one), then asks only that server, on this
machine. Prints a table, and exits with status 1 where it is ready after more than 10 s, a request is lost or answered
with another's picture, requests are not begun in the order in which they came, a bad upload is not refused with its
reason, or memory still grows by more than 32 MiB after five rounds of the same uploads.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY, GROWTH = 10.0, 32 * 2**20  # seconds, bytes
ROUNDS, SETTLED = 8, 5  # of bad uploads; after so many, the allocator and gradio hold what they ever will
BAD = {
    "empty": b"",
    "text": b"hello, world\n" * 1000,
    "web page": b"<!doctype html><html></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.7\n" + bytes(1000),
    "zip": b"PK\3\4" + bytes(1000),
    "gzip": b"\x1f\x8b" + bytes(1000),
    "zeros": bytes(20_000_000),
}


def main() -> int:
    """The exit status."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder, _served(options.model or _small(folder)) as (process, where, seconds):
        first, bad = _resident(process.pid), list(_bad().values())
        answers, took = _asked(where, options.clients, options.requests)
        before = _resident(process.pid)
        refused, held = [], []
        for _ in range(ROUNDS):
            refused += [_call(where, "reconstruct", picture=_text(content))[0] == "error" for content in bad]
            held.append(_resident(process.pid))
        alive = _call(where, "generate", label=0, seed=1)[0] == "complete"
    rows = [
        ("ready", f"{seconds:.1f} s", seconds <= READY),
        (f"{len(answers)} requests of {options.clients} clients", f"{took:.1f} s", all(answers)),
        ("bad uploads refused", f"{sum(refused)} of {len(refused)}", all(refused)),
        ("still answers", "yes" if alive else "no", alive),
        ("memory at first / before bad uploads", f"{_mib(first)} / {_mib(before)}", True),
        (f"memory after each of {ROUNDS} rounds of them", " / ".join(map(_mib, held)), True),
        (
            "memory that the last rounds added",
            _mib(held[-1] - held[SETTLED - 1]),
            held[-1] - held[SETTLED - 1] <= GROWTH,
        ),
    ]
    for name, figure, well in rows:
        print(f"{name:<42} {figure:<32} {'' if well else 'BROKEN'}")
    return int(not all(well for *_, well in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--model")
    return parser.parse_args()


def _small(folder: str) -> str:
    from nextscale import Pipeline

    Pipeline.from_preset("emoji-32").save(folder)
    return folder


@contextmanager
def _served(model: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """The process, its address, and the seconds until it told that."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    begun = time.perf_counter()
    program = [sys.executable, "-m", "nextscale", "web", "--model", model, "--port", str(port)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        where = process.stdout.readline().split()[1].rstrip("/")
        yield process, where, time.perf_counter() - begun
        process.send_signal(signal.SIGINT)


def _asked(where: str, clients: int, requests: int) -> tuple[list[bool], float]:
    """Whether each request had its own picture, and whether they ended in the order in which they were taken in."""
    numbers, ended, well = iter(range(requests)), list[int](), dict[int, bool]()
    taken, begun, lock = list[int](), time.perf_counter(), threading.Lock()

    def client() -> None:
        while True:
            with lock:  # taken in one at a time, so that there is an order
                seed = next(numbers, None)
                if seed is None:
                    return
                number = _join(where, "generate", label=seed % 9, seed=seed)
                taken.append(seed)
            event, answer = _wait(where, "generate", number)
            with lock:
                ended.append(seed)
                well[seed] = event == "complete" and answer[0][0]["settings"]["seed"] == seed

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # whoever waits for an answer may hear of it a little later than the next one does
    near = all(abs(taken.index(seed) - place) < clients for place, seed in enumerate(ended))
    return [well.get(seed, False) and near for seed in range(requests)], time.perf_counter() - begun


def _join(where: str, name: str, **values: Any) -> str:
    url = f"{where}/gradio_api/call/v2/{name}"
    asked = urllib.request.Request(url, json.dumps(values).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return json.load(answer)["event_id"]


def _wait(where: str, name: str, number: str) -> tuple[str, Any]:
    with urllib.request.urlopen(f"{where}/gradio_api/call/v2/{name}/{number}", timeout=300) as answer:
        event, data = answer.read().decode().strip().split("\n\n")[-1].splitlines()[:2]
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def _call(where: str, name: str, **values: Any) -> tuple[str, Any]:
    return _wait(where, name, _join(where, name, **values))


def _bad() -> dict[str, bytes]:
    """Twenty of different kinds."""
    import io
    import struct
    import zlib

    from PIL import Image

    def saved(picture: Image.Image, kind: str) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        return buffer.getvalue()

    def sized(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
        parts = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    noise = Image.effect_noise((1500, 1500), 90).convert("RGB")
    whole = {kind: saved(noise, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}
    cut = {f"cut {kind}": content[: len(content) // 3] for kind, content in whole.items()}
    headers = {f"header of {kind}": content[:12] for kind, content in whole.items()}
    sizes = {"wide": sized(65_000, 700), "bomb": sized(60_000, 60_000), "no pixels": sized(0, 9)}
    return BAD | cut | headers | sizes | {"floats": saved(Image.new("F", (900, 900)), "TIFF")}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
