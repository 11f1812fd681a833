"""Rows of one width that are written into a file in the making, at their place in it, in any order."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from histotl.core.errors import StoreError
from histotl.store.convert import converted
from histotl.store.digest import RunningDigest
from histotl.store.hdf5 import not_finite
from histotl.store.seal import Checked

PIECE_BYTES = 2**20
"""Rows that are written with one call. The system caches a file in pieces like those that it was written in, and
small ones take up to twice as long to read."""


class Place(NamedTuple):
    """Where a block of rows lies: its first byte, (rows, width), and the number format."""

    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[np.floating]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * self.shape[1]


class Block:
    """All rows of a dataset, or of one of its planes.

    Args:
        where: What the rows are, for messages, such as "the features of s.h5".
        place: Where they lie.
        head: What the SHA-256 begins with.
        gaps: NaN may stand for what is not known.
    """

    def __init__(self, where: str, place: Place, *, head: bytes = b"", gaps: bool = False) -> None:
        self.where, self._place, self._gaps = where, place, gaps
        self._written = np.zeros(place.shape[0], dtype=bool)
        self._digest = RunningDigest(place.shape[0], place.row_bytes, head)
        piece = max(1, min(place.shape[0], PIECE_BYTES // place.row_bytes))
        self._held, self._first, self._n_held = np.empty((piece, place.shape[1]), place.dtype), 0, 0

    @property
    def n(self) -> int:
        """Rows."""
        return self._place.shape[0]

    @property
    def missing(self) -> npt.NDArray[np.intp]:
        """Rows that were not given yet."""
        return np.flatnonzero(~self._written)

    def put(self, handle: int, rows: npt.NDArray[np.int64], values: npt.NDArray[np.floating]) -> None:
        """Store some rows.

        Args:
            handle: The file, open for reading and writing.
            rows: int64 (b,): their numbers; any order, each once.
            values: (b, width) float.

        Raises:
            StoreError: A row is out of range or given twice, the shape is wrong, or a value cannot be stored.
            OSError: The system did not let us write.
        """
        rows = np.asarray(rows, dtype=np.int64)
        width = self._place.shape[1]
        if rows.ndim != 1 or values.shape != (len(rows), width):
            wanted = f"({len(rows)}, {width}) wanted for {self.where}"
            raise StoreError(f"the rows given have the shape {values.shape}, {wanted}")
        if not rows.size:
            return
        values = self._converted(rows, values)
        steps = np.diff(rows)
        if (steps < 0).any():
            order = np.argsort(rows, kind="stable")
            rows, values = rows[order], values[order]
            steps = np.diff(rows)
        self._refuse(rows, steps)
        # One system call for each run of neighbouring rows; batches usually are one run.
        edges = [0, *(np.flatnonzero(steps != 1) + 1).tolist(), len(rows)]
        for start, stop in pairwise(edges):
            self._write(handle, int(rows[start]), values[start:stop])
        self._written[rows] = True

    def finish(self, handle: int) -> tuple[hashlib._Hash, Checked]:
        """Write what is held back.

        Returns:
            The SHA-256 of head and values, which may be continued, and the CRC-32 of the values.
        """
        self._flush(handle)
        digest, crc = self._digest.finish(lambda start, stop: self._read(handle, start, stop))
        size = self._place.shape[0] * self._place.row_bytes
        return digest, Checked(start=self._place.offset, size=size, crc=crc)

    def _converted(self, rows: npt.NDArray[np.int64], source: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        dtype = self._place.dtype
        values = converted(source, dtype)
        wrong = np.flatnonzero(np.isinf(values).any(axis=1)) if self._gaps else not_finite(values)
        if not wrong.size:
            return values
        bad = int(wrong[0])
        row, column = int(rows[bad]), int(np.flatnonzero(~np.isfinite(values[bad]))[0])
        fact = f"row {row}, column {column} of {self.where} is {source[bad][column]}"
        if np.isfinite(source[bad]).all():
            cure = "store this backbone's features as fp32"
            raise StoreError(f"{fact}, beyond the range of {dtype} (±{np.finfo(dtype).max})", hint=cure)
        if self._gaps:
            raise StoreError(f"{fact}; values must be finite, or NaN where there is none", hint="look at the measure")
        raise StoreError(f"{fact}; features must be finite", hint="run the backbone in fp32; look at the tile")

    def _refuse(self, rows: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> None:
        """Raise where sorted rows, at least one, do not exist or are there already."""
        n = self._place.shape[0]
        if rows[0] < 0 or rows[-1] >= n:
            seen = rows[0] if rows[0] < 0 else rows[-1]
            raise StoreError(f"row {seen} does not exist in {self.where}, which has {n} rows")
        for twice in (rows[:-1][steps == 0], rows[self._written[rows]]):
            if twice.size:
                raise StoreError(f"row {twice[0]} of {self.where} was given twice")

    def _write(self, handle: int, row: int, values: npt.NDArray[np.floating]) -> None:
        """Take neighbouring rows; whole pieces go to the disk."""
        if row != self._first + self._n_held:
            self._flush(handle)
            self._first = row
        while len(values):
            room = len(self._held) - self._n_held
            some, values = values[:room], values[room:]
            self._held[self._n_held : self._n_held + len(some)] = some
            self._n_held += len(some)
            if self._n_held == len(self._held):
                self._flush(handle)

    def _flush(self, handle: int) -> None:
        if not self._n_held:
            return
        # pwrite, not a memory map: a full disk is an error here and a fatal signal there.
        position = self._place.offset + self._first * self._place.row_bytes
        left = whole = self._held[: self._n_held].data.cast("B")
        while left:
            done = os.pwrite(handle, left, position)
            left, position = left[done:], position + done
        self._digest.add(self._first, whole)
        self._first, self._n_held = self._first + self._n_held, 0

    def _read(self, handle: int, start: int, stop: int) -> bytes:
        """Bytes of rows that were written."""
        row_bytes = self._place.row_bytes
        position, wanted = self._place.offset + start * row_bytes, (stop - start) * row_bytes
        parts = []
        while wanted:
            part = os.pread(handle, wanted, position)
            if not part:
                raise OSError("it was cut short by someone else")
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return b"".join(parts)
