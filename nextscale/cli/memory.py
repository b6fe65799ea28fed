"""What commands ask of the C library and of Python's collector, to spend less time on memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """A context for importing torch: what comes with it is for good, and Python's collector need not look at it.

    Otherwise it looks through 170,000 objects again and again while they come, and twice when the process ends: a
    quarter of the time of `import torch`. Nothing is done where torch is imported already.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed() -> None:
    """Let the C library keep what tensors gave back, for the next step needs as much again.

    Otherwise glibc returns every large block to the system, which fills it with zeros for the next tensor: a tenth to
    a quarter of a training step on CPUs, and half of looking at pictures. Other C libraries stay as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Let the C library return every block of a megabyte and more to the system as soon as it is freed.

    For a server, which lives long and takes uploads in many threads: by itself glibc raises that size to that of the
    largest block it ever freed, and each thread then keeps some. Other C libraries stay as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
