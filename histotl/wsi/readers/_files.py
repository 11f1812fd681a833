"""Positioned reads of one file from several threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from histotl.core.errors import SlideReadError
from histotl.wsi.readers._pixels import one_line

GAP_BYTES = 64 * 1024
"""Byte ranges that lie nearer than this share one read: reading over the gap costs less than another call."""

_RUN_BYTES = 16 * 2**20
"""Longest single read; bounds the memory of a fetch that covers a whole level."""


class FilePerThread:
    """A file with a handle for every thread that reads it, since the kernel's readahead follows one reader a handle.

    Handles are opened on first use and closed together; there is no seek state.

    Args:
        path: The file.
        state: Size and time of change that it must have whenever a handle is opened, as :func:`state_of` tells them;
            anything when None. Where the tiles lie was read from that file, so the bytes of another are none of them.
    """

    def __init__(self, path: Path, state: tuple[int, int] | None = None) -> None:
        self.path, self._state = path, state
        self._own = threading.local()
        self._open: list[int] = []
        self._lock = threading.Lock()
        self.closed = False
        # Also closes when the slide is dropped without close().
        self._finalizer = weakref.finalize(self, _close_all, self._open)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from a place in the file; fewer where it ends.

        Raises:
            SlideReadError: It is closed, has changed, or cannot be read.
        """
        try:
            return _read_at(self._handle(), offset, size)
        except SlideReadError:  # an OSError too, and says what is wrong already
            raise
        except OSError as error:
            fact = f"{self.path.name}: {size} bytes at {offset} cannot be read: {one_line(error)}"
            raise SlideReadError(fact, hint="check the disk or the network share, then run again") from error

    def close(self) -> None:
        """Close the handles of all threads; calling twice does no harm."""
        with self._lock:
            self.closed = True
            _close_all(self._open)

    def _handle(self) -> int:
        if self.closed:
            raise SlideReadError(f"{self.path.name}: the slide is closed", hint="open it again")
        handle: int | None = getattr(self._own, "handle", None)
        if handle is None:
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if self._state not in (None, state_of(os.fstat(handle))):
                os.close(handle)
                fact = f"{self.path.name}: the file has changed since it was opened"
                raise SlideReadError(fact, hint="run again when nothing writes to it any more")
            with self._lock:
                if self.closed:
                    os.close(handle)
                    raise SlideReadError(f"{self.path.name}: the slide is closed", hint="open it again")
                self._open.append(handle)
            self._own.handle = handle
        return handle


def state_of(stat: os.stat_result) -> tuple[int, int]:
    """What tells a file from the one that was there before: its size in bytes and its time of change in ns."""
    return stat.st_size, stat.st_mtime_ns


def _close_all(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())


def _read_at(handle: int, offset: int, size: int) -> bytes:
    data = _pread(handle, size, offset)
    if len(data) == size:
        return data
    # A read may stop early without being at the end.
    parts = [data]
    while data and size > sum(map(len, parts)):
        done = sum(map(len, parts))
        data = _pread(handle, size - done, offset + done)
        parts.append(data)
    return b"".join(parts)


def _pread(handle: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    os.lseek(handle, offset, os.SEEK_SET)  # the handle belongs to one thread, so its position does too
    return os.read(handle, size)


def read_ranges(
    read: Callable[[int, int], bytes], starts: Sequence[int], sizes: Sequence[int]
) -> tuple[list[bytes], list[int]]:
    """Many byte ranges with few reads.

    Args:
        read: Gives bytes for (offset, size).
        starts: Where the ranges begin.
        sizes: Their lengths.

    Returns:
        The bytes of each range, in the order asked for, and the positions of those that the file is too short for.
    """
    found, short = [b""] * len(starts), []
    for run in _runs(starts, sizes):
        begin = starts[run[0]]
        data = read(begin, max(starts[position] + sizes[position] for position in run) - begin)
        for position in run:
            start, size = starts[position] - begin, sizes[position]
            part = found[position] = data if size == len(data) else data[start : start + size]
            if len(part) < size:
                short.append(position)
    return found, short


def _runs(starts: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Positions of ranges that are read together, each run in the order of the file."""
    order = sorted(range(len(starts)), key=starts.__getitem__)
    runs: list[list[int]] = []
    first = end = -1
    for position in order:
        start, stop = starts[position], starts[position] + sizes[position]
        if first < 0 or start - end > GAP_BYTES or stop - first > _RUN_BYTES:
            runs.append([])
            first = end = start
        runs[-1].append(position)
        end = max(end, stop)
    return runs
