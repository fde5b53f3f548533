"""What the C library keeps of memory that is freed, and what Python looks for to be freed.

Memory may be wanted again a moment later, as by one picture after the other in a VAE: glibc hands large blocks back to
the system at once, and the system clears every page of the next one: a quarter of the VAE's CPU time at 256 px.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
"""Parameters of `mallopt`; https://man7.org/linux/man-pages/man3/mallopt.3.html."""
_USUAL_MMAP_MAX = 65536
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""Where glibc's own threshold ends up after a block of this size; the trim threshold is twice as high."""
_NEVER = 2**31 - 1
_COLLECTOR_THRESHOLDS = 20_000, 20, 20
"""Python's own are 700, 10, 10: lists of 2,000 pictures cross the first one again and again."""


@contextmanager
def keeping_freed_memory() -> Generator[None, None, None]:
    """Within the block the process keeps what it frees; afterwards all of it goes back to the system.

    Does nothing where the C library is not glibc.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Hand what was freed back to the system; glibc alone would keep it."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def keep_one_heap() -> None:
    """Let all threads of the process share a heap, where the C library is glibc.

    Left to itself it gives each of the first threads one of its own, and a page that twenty browsers poll keeps in each
    what it once needed there: it grew by 72 MB over 3,000 polls of a large workspace; with one heap by 7 MB over 2,000.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, 1)


def collect_less_garbage() -> None:
    """Let Python's collector never look again through what the process holds by now, its modules and its page, and
    through the rest less often.

    They are a quarter of a million objects, and each look through all held everything else up for 150 to 250 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
