"""`nextscale web`: the browser studio on this machine."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.cli import memory, models
from nextscale.cli.options import Count, Depth, Directory, Encoder, Model, SamplingPrecision
from nextscale.cli.output import say
from nextscale.errors import InputError

if TYPE_CHECKING:
    from nextscale.pipeline import Pipeline

MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Web:
    """Browser studio: generate, edit, reconstruct, compare, and watch training."""

    model: Model = ()
    """Directory such as `nextscale demo` leaves, hub name, or the public release's tokenizer and transformer files
    (default: the model that comes with nextscale)."""
    depth: Depth = None
    """Depth of the release's transformer, if --model is a folder or hub name with several: 16, 20, 24 ..."""
    text_encoder: Encoder = None
    """Path of the frozen text encoder that the model was trained with, if it has moved."""
    runs: Directory = Path("runs")
    """Folder of the training runs to watch."""
    port: Count = None
    """Port to listen on (default: the first free one from 7860 on)."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines use all of the page."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is CUDA if available."""
    precision: SamplingPrecision = "auto"
    """auto is bf16 where the hardware supports it natively, else fp32; int8 is for CPUs."""

    def run(self) -> None:
        if self.port is not None and not 1 <= self.port <= MOST_PORT:
            raise InputError(f"--port: expected 1 .. {MOST_PORT}, got {self.port}")
        from nextscale.web.serving import served

        memory.give_back()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops it, its files are removed
        with served(self._pipeline(), runs=self.runs, host=self.host, port=self.port) as address:
            say(f"studio: {address}  (Ctrl+C stops it)")
            while True:
                time.sleep(3600)

    def _pipeline(self) -> Pipeline:
        pipe = models.load(
            self.model, self.depth, device=self.device, precision=self.precision, text_encoder=self.text_encoder
        )
        if pipe.transformer.order != "scale":
            raise InputError(
                f"--model {models.called(self.model)}: expected a next-scale model, whose scales the studio shows and "
                f"edits, got one of order {pipe.transformer.order}, which nextscale sample paints"
            )
        return pipe
