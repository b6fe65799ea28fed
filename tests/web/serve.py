"""`nextscale web` as it is, but that pictures of seed 777 wait a while after each scale, for somebody to press Stop."""

from __future__ import annotations

import sys
import time
from typing import Any

from nextscale import Pipeline
from nextscale.cli import main

SLOW, SECONDS = 777, 0.4
generate = Pipeline.generate


def slow(self: Pipeline, labels: Any, seeds: Any, *, callback: Any = None, **more: Any) -> Any:
    def waiting(step: Any) -> None:
        callback(step)
        time.sleep(SECONDS)

    return generate(self, labels, seeds, callback=waiting if SLOW in seeds else callback, **more)


Pipeline.generate = slow  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
