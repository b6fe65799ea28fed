"""`nextscale web` as it is, but that pictures of some seeds wait after a scale until somebody presses Stop."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

from nextscale.cli import main
from nextscale.pipeline import Step
from nextscale.web import actions

WAITING, SECONDS = {777: 1, 778: 2}, 60.0  # after how many scales; how long at most
frames = actions.frames


def patient(call: Callable[..., Any], stopped: threading.Event) -> Generator[Any, None, None]:
    def painted(show: Callable[[Step], object]) -> Any:
        def shown(step: Step) -> None:
            show(step)
            if WAITING.get(step.requests[0].seed) == step.scale + 1:
                stopped.wait(SECONDS)

        return call(shown)

    return frames(painted, stopped)


actions.frames = patient
sys.exit(main(sys.argv[1:]))
