"""What commands that take the same memory again and again ask of the C library."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


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
