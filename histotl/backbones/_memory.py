"""Large blocks of freed memory are kept for the next forward pass instead of going back to the system."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MIB = 1 << 20


@contextmanager
def large_blocks_kept(*, in_threads: bool = False) -> Iterator[None]:
    """Keep freed blocks of up to 1 GiB in the process while this lasts; for networks on a CPU.

    The maps of a layer are tens of megabytes a batch. glibc gives blocks above 32 MB back to the system when they are
    freed, and the pages of the next layer's are then zeroed one by one again, which can take as long as the whole
    network. The process holds no more than its own peak. Threads beside the main one allocate from areas of 64 MB each,
    which go back whole: for networks in such threads, those that begin from now on share the main one's area. glibc
    cannot take that back.

    Elsewhere than on Linux with glibc, nothing is changed.

    Args:
        in_threads: Networks run in threads beside the main one.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    if in_threads:
        libc.mallopt(_ARENA_MAX, 1)
    libc.mallopt(_MMAP_THRESHOLD, 1024 * _MIB)
    libc.mallopt(_TRIM_THRESHOLD, 2048 * _MIB - 1)
    try:
        yield
    finally:
        # The values that glibc's own rule arrives at once such blocks have been freed.
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
