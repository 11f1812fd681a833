"""Feature rows by number, plain or of an augmented view, wherever they lie.

Files are read in the way that their size calls for: into memory, in the number format of the files, where they fit
into a budget; else page by page through memory maps (:mod:`histotl.learn.maps`). Rows for a GPU that has room for all
of them lie there (:mod:`histotl.learn.device_rows`). The rows are the same in every way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt

from histotl.core.errors import StoreError
from histotl.learn.finite import check_finite
from histotl.learn.maps import Maps
from histotl.learn.memory import budget_bytes
from histotl.store.convert import convert, converted
from histotl.store.embeddings import Embeddings

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]

BLOCK_ROWS = 2048
"""Rows that are taken and converted at a time; what lies between stays in the processor's cache."""


class Rows(Protocol):
    """Feature rows by number.

    Attributes:
        n: Rows.
        dim: D, length of a row.
        n_views: Augmented views of each.
        dtype: Number format that they are kept in.
    """

    n: int
    dim: int
    n_views: int
    dtype: np.dtype[np.floating]

    def read(self, rows: Indices, views: Indices | None = None) -> npt.NDArray[np.float32]:
        """Rows float32 (b, D), all finite; of the augmented view that ``views``, int64 (b,), names, -1 for none."""

    def coords(self, rows: Indices) -> Indices | None:
        """int64 (b, 2) level-0 corners of rows, None where there are none."""


class ArrayRows:
    """Rows of an array in memory.

    Args:
        features: float (n, D).
        coords_l0: int64 (n, 2), or None.
    """

    n_views = 0

    def __init__(self, features: Floats, coords_l0: Indices | None = None) -> None:
        self.n, self.dim = features.shape
        self.dtype = features.dtype
        self._features, self._coords = features, coords_l0

    def read(self, rows: Indices, views: Indices | None = None) -> npt.NDArray[np.float32]:
        """See :class:`Rows`; an array has no views."""
        if views is not None and (views >= 0).any():
            raise StoreError("an array in memory has no augmented views", hint="give files made with --views")
        return check_finite(take_rows(self._features, rows), "the array")

    def coords(self, rows: Indices) -> Indices | None:
        """See :class:`Rows`."""
        return None if self._coords is None else self._coords[rows]


class FileRows:
    """Rows of embeddings files, one after the other.

    Args:
        files: The files, checked to be of one identity.
        n_views: Augmented views that each of them has.
        memory_gb: Memory that features may take, in units of 2**30 bytes; 0 for half of what is free.
    """

    def __init__(self, files: Sequence[Embeddings], n_views: int = 0, memory_gb: float = 0.0) -> None:
        self.paths, self.n_views, self._files = [file.path for file in files], n_views, tuple(files)
        self.starts = np.cumsum([0, *(file.n for file in files)]).astype(np.int64)
        self.n, self.dim = int(self.starts[-1]), files[0].dim
        self.dtype = np.result_type(*{file.dtype for file in files})
        size, budget = self.n * self.dim * self.dtype.itemsize, budget_bytes(memory_gb)
        # Plain rows go before views: every step reads them.
        everything = set(range(-1, n_views))
        self._resident = everything if size * len(everything) <= budget else {-1} if size <= budget else set[int]()
        self._memory: dict[int, Floats] = {}
        self._lock = Lock()  # the next step is read by a thread of its own
        # Half of the room is for pages, so that those of the rows in work fit too.
        self._maps = Maps(files, max(0, budget - size * len(self._resident)) // 2)

    @property
    def residency(self) -> str:
        """Where plain rows are read from: ``memory`` or ``maps``."""
        return "memory" if self._resident else "maps"

    def read(self, rows: Indices, views: Indices | None = None) -> npt.NDArray[np.float32]:
        """See :class:`Rows`.

        Raises:
            CorruptFileError: A value is NaN or infinite, or a file is damaged.
        """
        if views is None:
            return self._read(rows, -1)
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for number in np.unique(views).tolist():
            chosen = np.flatnonzero(views == number)
            out[chosen] = self._read(rows[chosen], number)
        return out

    def coords(self, rows: Indices) -> Indices | None:
        """See :class:`Rows`."""
        out = np.empty((len(rows), 2), dtype=np.int64)
        for place, file, local in self._parts(rows):
            found = self._files[file].coords_l0
            if found is None:
                return None
            out[place] = found[local]
        return out

    def _read(self, rows: Indices, view: int) -> npt.NDArray[np.float32]:
        """Rows of one view, or plain for -1."""
        if view in self._resident:
            return take_rows(self._all(view), rows)
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for place, file, local in self._parts(rows):
            dtype = self._files[file].dtype
            part = np.empty((min(BLOCK_ROWS, len(local)), self.dim), dtype)
            for start in range(0, len(local), BLOCK_ROWS):
                some = local[start : start + BLOCK_ROWS]
                self._maps.read(file, some, None if view < 0 else view, part[: len(some)])
                found = check_finite(converted(part[: len(some)], np.float32), str(self.paths[file]))
                out[place[start : start + BLOCK_ROWS]] = found
        return out

    def _all(self, view: int) -> Floats:
        with self._lock:
            if view not in self._memory:
                self._memory[view] = self._load(view)
        return self._memory[view]

    def _load(self, view: int) -> Floats:
        everything = np.empty((self.n, self.dim), dtype=self.dtype)
        for number, file in enumerate(self._files):
            with file:
                part = file.read(dtype=self.dtype, view=None if view < 0 else view)
            everything[self.starts[number] : self.starts[number + 1]] = check_finite(part, str(file.path))
        return everything

    def _parts(self, rows: Indices) -> Iterator[tuple[Indices, int, Indices]]:
        """For each file that the rows touch, in order: places in ``rows``, its number, ascending rows within it."""
        order = np.argsort(rows, kind="stable").astype(np.int64)
        files = np.searchsorted(self.starts, rows[order], side="right") - 1
        for place in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(files)) + 1):
            if len(place):
                file = int(files[place[0]])
                yield order[place], file, rows[order[place]] - self.starts[file]


def take_rows(features: Floats, rows: Indices) -> npt.NDArray[np.float32]:
    """Some rows of an array, float32, converted block by block.

    Raises:
        StoreError: A row does not exist.
    """
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(features):
        raise StoreError(f"rows {rows.min()} to {rows.max()} are asked for, there are {len(features)}")
    out = np.empty((len(rows), features.shape[1]), dtype=np.float32)
    part = np.empty((min(BLOCK_ROWS, len(rows)), features.shape[1]), features.dtype)
    for start in range(0, len(rows), BLOCK_ROWS):
        some = rows[start : start + BLOCK_ROWS]
        # With a buffer and a mode other than "raise" nothing is copied twice.
        target = out[start : start + len(some)] if features.dtype == np.float32 else part[: len(some)]
        np.take(features, some, axis=0, out=target, mode="clip")
        if target.base is not out:
            convert(target, out[start : start + len(some)])
    return out
