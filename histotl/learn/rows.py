"""Feature rows on disk or in memory, plain or of an augmented view, by number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from histotl.core.errors import CorruptFileError, StoreError
from histotl.store.embeddings import Embeddings, open_embeddings

Indices = npt.NDArray[np.int64]
F = TypeVar("F", bound=np.floating)

RESIDENT_BYTES = 2 << 30
"""A feature set up to this size is read once and kept in memory; larger ones are read in slices from their files."""

OPEN_FILES = 128
"""Feature files held open at a time, well below the usual limit of a process."""


class Rows(Protocol):
    """Feature rows by number."""

    n: int
    dim: int
    n_views: int

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

    def __init__(self, features: npt.NDArray[np.floating], coords_l0: Indices | None = None) -> None:
        self.n, self.dim = features.shape
        self._features, self._coords = features, coords_l0

    def read(self, rows: Indices, views: Indices | None = None) -> npt.NDArray[np.float32]:
        """See :class:`Rows`; an array has no views."""
        if views is not None and (views >= 0).any():
            raise StoreError("an array in memory has no augmented views", hint="give files made with --views")
        return check_finite(self._features[rows].astype(np.float32), "the array")

    def coords(self, rows: Indices) -> Indices | None:
        """See :class:`Rows`."""
        return None if self._coords is None else self._coords[rows]


class FileRows:
    """Rows of embeddings files, one after the other.

    Args:
        files: The files, checked to be of one identity.
        n_views: Augmented views that each of them has.
    """

    def __init__(self, files: Sequence[Embeddings], n_views: int = 0) -> None:
        self.paths = [file.path for file in files]
        self.starts = np.cumsum([0, *(file.n for file in files)]).astype(np.int64)
        self.n, self.dim = int(self.starts[-1]), files[0].dim
        self._dtype = np.result_type(*{file.dtype for file in files})
        self._open: OrderedDict[int, Embeddings] = OrderedDict()
        self._resident: npt.NDArray[np.floating] | None = None
        size = self.n * self.dim * self._dtype.itemsize
        self._fits, self._views_fit = size <= RESIDENT_BYTES, size * (1 + n_views) <= RESIDENT_BYTES
        self.n_views, self._resident_views = n_views, dict[int, npt.NDArray[np.floating]]()

    def read(self, rows: Indices, views: Indices | None = None) -> npt.NDArray[np.float32]:
        """See :class:`Rows`.

        Raises:
            CorruptFileError: A value is NaN or infinite, or a file is damaged.
        """
        if views is None:
            return self._read(rows, None)
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for number in np.unique(views).tolist():
            chosen = np.flatnonzero(views == number)
            out[chosen] = self._read(rows[chosen], number if number >= 0 else None)
        return out

    def _read(self, rows: Indices, view: int | None) -> npt.NDArray[np.float32]:
        """Rows of one view, or plain."""
        if self._fits if view is None else self._views_fit:
            return self._all(view)[rows].astype(np.float32)
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for place, file, local in self._parts(rows):
            out[place] = check_finite(self._file(file).read(local, view=view), str(self.paths[file]))
        return out

    def coords(self, rows: Indices) -> Indices | None:
        """See :class:`Rows`."""
        out = np.empty((len(rows), 2), dtype=np.int64)
        for place, file, local in self._parts(rows):
            found = self._file(file).coords_l0
            if found is None:
                return None
            out[place] = found[local]
        return out

    def _all(self, view: int | None) -> npt.NDArray[np.floating]:
        found = self._resident if view is None else self._resident_views.get(view)
        if found is not None:
            return found
        everything = np.empty((self.n, self.dim), dtype=self._dtype)
        for file, start in enumerate(self.starts[:-1]):
            part = self._file(file).read(dtype=self._dtype, view=view)
            everything[start : start + len(part)] = check_finite(part, str(self.paths[file]))
        if view is None:
            self._resident = everything
        else:
            self._resident_views[view] = everything
        return everything

    def _parts(self, rows: Indices) -> Iterator[tuple[Indices, int, Indices]]:
        """For each file that the rows touch: places in ``rows``, the file's number, row numbers within it."""
        files = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(files, kind="stable").astype(np.int64)
        for place in np.split(order, np.flatnonzero(np.diff(files[order])) + 1):
            if len(place):
                file = int(files[place[0]])
                yield place, file, rows[place] - self.starts[file]

    def _file(self, number: int) -> Embeddings:
        if number not in self._open:
            self._open[number] = open_embeddings(self.paths[number])
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]


def check_finite(rows: npt.NDArray[F], where: str) -> npt.NDArray[F]:
    """The rows, if all are finite.

    Raises:
        CorruptFileError: Some are NaN or infinite.
    """
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
        raise CorruptFileError(f"{where}: {bad} of {len(rows)} rows read are NaN or infinite", hint="embed it again")
    return rows
