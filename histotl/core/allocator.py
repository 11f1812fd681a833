"""Large blocks of freed memory are kept for the next step instead of going back to the system."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MIB = 1 << 20


@contextmanager
def large_blocks_kept(*, in_threads: bool = False) -> Iterator[None]:
    """Keep freed blocks of up to 1 GiB in the process while this lasts; for networks on a CPU.

    The maps of a layer, and the packed tiles of a training step, are tens of megabytes. glibc gives blocks above 32 MB
    back to the system when they are freed, and the pages of the next ones are then zeroed one by one again, which can
    take as long as the whole network. The process holds no more than its own peak. Threads beside the main one allocate
    from areas of 64 MB each, which go back whole: for such threads, those that begin from now on share the main one's
    area. glibc cannot take that back.

    May be used within itself, also by several threads; the outermost that ends last restores what was before. Elsewhere
    than on Linux with glibc, nothing is changed.

    Args:
        in_threads: Threads beside the main one allocate such blocks.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    if in_threads:
        libc.mallopt(_ARENA_MAX, 1)
    _users.enter(libc)
    try:
        yield
    finally:
        _users.leave(libc)


class _Users:
    """How many want large blocks kept."""

    def __init__(self) -> None:
        self._count, self._lock = 0, Lock()

    def enter(self, libc: ctypes.CDLL) -> None:
        with self._lock:
            self._count += 1
            libc.mallopt(_MMAP_THRESHOLD, 1024 * _MIB)
            libc.mallopt(_TRIM_THRESHOLD, 2048 * _MIB - 1)

    def leave(self, libc: ctypes.CDLL) -> None:
        with self._lock:
            self._count -= 1
            if self._count:
                return
            # The values that glibc's own rule arrives at once such blocks have been freed.
            libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
            libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
            libc.malloc_trim(0)


_users = _Users()


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
