"""Writes an embeddings file once: reserve, fill in any order, seal."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
import numpy.typing as npt

from histotl.core.atomic import atomic_path
from histotl.core.errors import StoreError
from histotl.store import schema
from histotl.store.attributes import set_attributes, set_own_attributes
from histotl.store.convert import converted
from histotl.store.digest import RunningDigest, array_digest, data_digest
from histotl.store.hdf5 import cannot_write, create_contiguous, create_file, not_finite, write_contiguous, write_texts
from histotl.store.schema import DTYPES, DType, EmbeddingsMeta, Key
from histotl.store.seal import Checked, add_seal

_PIECE_BYTES = 2**20
"""Features that are written with one call. The system caches a file in pieces like those that it was written in, and
small ones take up to twice as long to read."""


class EmbeddingsWriter:
    """One embeddings file in the making, under a temporary name beside its final one.

    ``seal`` gives it the final name; leaving the ``with`` block without it removes every trace. One writer a path and
    process: `histotl.store.lock.SlideLock` keeps others away. Any thread may call it, one at a time. Rows that come in
    order cost least: they are hashed as they pass, others are read back before the seal.

    Args:
        path: Final name. A file that is there is replaced at the moment of sealing, not before.
        n: Rows.
        dim: Length of a feature vector.
        dtype: Number format on disk.
        meta: Everything else that goes into the file.

    Raises:
        StoreError: `n`, `dim` or `dtype` disagrees with `meta`, or the folder cannot be written to.
    """

    def __init__(self, path: Path, *, n: int, dim: int, dtype: DType, meta: EmbeddingsMeta) -> None:
        _check(n, dim, dtype, meta)
        self.path = path
        self._shape = (int(n), int(dim))
        self._dtype = DTYPES[dtype]
        self._row_bytes = self._dtype.itemsize * self._shape[1]
        self._written = np.zeros(n, dtype=bool)
        self._digest = RunningDigest(schema.FEATURES, self._shape, self._dtype)
        self._place: AbstractContextManager[Path] | None = atomic_path(path)
        self._handle = -1
        piece = max(1, min(self._shape[0], _PIECE_BYTES // self._row_bytes))
        self._held, self._first, self._n_held = np.empty((piece, self._shape[1]), self._dtype), 0, 0
        try:
            self._temporary = self._place.__enter__()
            self._offset, self._others = _reserve(self._temporary, path, self._shape, self._dtype, meta)
            self._handle = os.open(self._temporary, os.O_RDWR)
        except OSError as error:
            self.abort()
            raise error if isinstance(error, StoreError) else cannot_write(path, error) from error

    def put(self, rows: npt.NDArray[np.int64], features: npt.NDArray[np.floating]) -> None:
        """Store some rows.

        Args:
            rows: int64 (b,): their places in the file; any order, each place once.
            features: (b, dim) float.

        Raises:
            StoreError: A row is out of range or given twice, the shape is wrong, a value is NaN or infinite or beyond
                the range of the number format, or the disk is full.
        """
        if self._place is None:
            raise StoreError(f"{self.path} is sealed or aborted, no rows can be added")
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or features.shape != (len(rows), self._shape[1]):
            wanted = f"({len(rows)}, {self._shape[1]})"
            raise StoreError(f"features have the shape {features.shape}, {wanted} wanted for {self.path.name}")
        if not rows.size:
            return
        values = self._converted(rows, features)
        steps = np.diff(rows)
        if (steps < 0).any():
            order = np.argsort(rows, kind="stable")
            rows, values = rows[order], values[order]
            steps = np.diff(rows)
        self._refuse(rows, steps)
        # One system call for each run of neighbouring rows; batches usually are one run.
        edges = [0, *(np.flatnonzero(steps != 1) + 1).tolist(), len(rows)]
        try:
            for start, stop in pairwise(edges):
                self._write(int(rows[start]), values[start:stop])
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._written[rows] = True

    def seal(self) -> None:
        """Add digest and seal, flush, rename. After this the file is there, whole.

        Raises:
            StoreError: Rows are missing, it was sealed or aborted before, or the disk is full.
        """
        if self._place is None:
            raise StoreError(f"{self.path} is sealed or aborted already")
        missing = np.flatnonzero(~self._written)
        if missing.size:
            shown = ", ".join(map(str, missing[:5])) + (" …" if missing.size > 5 else "")
            raise StoreError(f"{self.path} cannot be sealed: {missing.size} of {self._shape[0]} rows missing ({shown})")
        place = self._place
        try:
            self._finish()
            place.__exit__(None, None, None)
        except OSError as error:
            self.abort()
            raise error if isinstance(error, StoreError) else cannot_write(self.path, error) from error
        self._place = None

    def abort(self) -> None:
        """Remove the unfinished file; nothing happens after ``seal``."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._place is not None:
            place, self._place = self._place, None
            reason = StoreError(f"{self.path} was aborted")
            place.__exit__(StoreError, reason, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _converted(self, rows: npt.NDArray[np.int64], features: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        values = converted(features, self._dtype)
        wrong = not_finite(values)
        if not wrong.size:
            return values
        bad = int(wrong[0])
        row, source = int(rows[bad]), features[bad]
        column = int(np.flatnonzero(~np.isfinite(values[bad]))[0])
        fact = f"row {row}, column {column} of {self.path.name} is {source[column]}"
        if np.isfinite(source).all():
            cure = "store this backbone's features as fp32"
            raise StoreError(f"{fact}, beyond the range of {self._dtype} (±{np.finfo(self._dtype).max})", hint=cure)
        raise StoreError(f"{fact}; features must be finite", hint="run the backbone in fp32; look at the tile")

    def _refuse(self, rows: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> None:
        """Raise where sorted rows, at least one, do not exist or are there already."""
        if rows[0] < 0 or rows[-1] >= self._shape[0]:
            seen = rows[0] if rows[0] < 0 else rows[-1]
            raise StoreError(f"row {seen} does not exist in {self.path.name}, which has {self._shape[0]} rows")
        for twice in (rows[:-1][steps == 0], rows[self._written[rows]]):
            if twice.size:
                raise StoreError(f"row {twice[0]} of {self.path.name} was given twice")

    def _write(self, row: int, values: npt.NDArray[np.floating]) -> None:
        """Take neighbouring rows; whole pieces go to the disk."""
        if row != self._first + self._n_held:
            self._flush()
            self._first = row
        while len(values):
            room = len(self._held) - self._n_held
            some, values = values[:room], values[room:]
            self._held[self._n_held : self._n_held + len(some)] = some
            self._n_held += len(some)
            if self._n_held == len(self._held):
                self._flush()

    def _flush(self) -> None:
        if not self._n_held:
            return
        # pwrite, not a memory map: a full disk is an error here and a fatal signal there.
        position = self._offset + self._first * self._row_bytes
        left = whole = self._held[: self._n_held].data.cast("B")
        while left:
            done = os.pwrite(self._handle, left, position)
            left, position = left[done:], position + done
        self._digest.add(self._first, whole)
        self._first, self._n_held = self._first + self._n_held, 0

    def _read(self, start: int, stop: int) -> bytes:
        """Bytes of rows that were written."""
        position, wanted = self._offset + start * self._row_bytes, (stop - start) * self._row_bytes
        parts = []
        while wanted:
            part = os.pread(self._handle, wanted, position)
            if not part:
                raise OSError("it was cut short by someone else")
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return b"".join(parts)

    def _finish(self) -> None:
        """Close the file with digest and seal in it."""
        self._flush()
        digest, crc = self._digest.finish(self._read)
        os.close(self._handle)
        self._handle = -1
        with h5py.File(self._temporary, "r+", locking=False) as file:
            for name, values in self._others.items():
                array_digest(digest, name, values)
            set_own_attributes(file.id, {Key.DIGEST: data_digest(file, [schema.ITEMS], digest)})
        add_seal(self._temporary, Checked(start=self._offset, size=self._shape[0] * self._row_bytes, crc=crc))


def _check(n: int, dim: int, dtype: DType, meta: EmbeddingsMeta) -> None:
    if dtype not in DTYPES:
        raise StoreError(f"dtype is {dtype!r}", hint=f"give one of {', '.join(DTYPES)}")
    if n != meta.n:
        raise StoreError(f"n is {n}, but the grid or the items have {meta.n} rows")
    grid = meta.grid
    if grid is not None and (grid.coords_l0.shape != (n, 2) or grid.tissue_fraction.shape != (n,)):
        seen = f"{grid.coords_l0.shape} coordinates and {grid.tissue_fraction.shape} tissue fractions"
        raise StoreError(f"the grid has {seen}, ({n}, 2) and ({n},) wanted")
    if dim != meta.card.dim or dim < 1:
        raise StoreError(f"dim is {dim}, but the card of {meta.card.name} says {meta.card.dim}")
    if dtype != meta.identity.dtype:
        raise StoreError(f"dtype is {dtype}, but the identity says {meta.identity.dtype}")


def _reserve(
    temporary: Path, path: Path, shape: tuple[int, int], dtype: np.dtype[np.floating], meta: EmbeddingsMeta
) -> tuple[int, dict[str, npt.NDArray[np.generic]]]:
    """Write everything but the features.

    Returns:
        The byte at which they begin, and the other arrays in the order in which they are digested.
    """
    others: dict[str, npt.NDArray[np.generic]] = {}
    with create_file(temporary, largest=shape[0] * shape[1] * dtype.itemsize) as file:
        set_own_attributes(file.id, schema.root_attributes(meta, path))
        features = create_contiguous(file, schema.FEATURES, shape, dtype)
        names = (path.stem if meta.slide is None else meta.slide.slide_id, schema.folder_name(path), meta.card.name)
        set_attributes(features.id, dict(zip(schema.TRIDENT_FEATURES, names, strict=True)))
        if meta.slide is not None and meta.grid is not None:
            others[schema.COORDS] = meta.grid.coords_l0.astype(np.int64).reshape(-1, 2)
            others[schema.TISSUE] = meta.grid.tissue_fraction.astype(np.float32)
            stored = {name: write_contiguous(file, name, values) for name, values in others.items()}
            set_attributes(stored[schema.COORDS].id, schema.coords_attributes(meta.slide, meta.grid, path))
        else:
            write_texts(file, schema.ITEMS, meta.items)
        return features.id.get_offset() or 0, others
