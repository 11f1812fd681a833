"""Writes an embeddings file once: reserve, fill in any order, seal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
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
from histotl.store.block import Block, Place
from histotl.store.digest import array_digest, data_digest, head_line, planes_digest
from histotl.store.extras import QUALITY, VIEWS, Extra
from histotl.store.hdf5 import cannot_write, create_contiguous, create_file, write_contiguous, write_texts
from histotl.store.schema import DTYPES, DType, EmbeddingsMeta, Key
from histotl.store.seal import add_seal


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
        meta: Everything else that goes into the file; its ``extras`` say what else every row has.

    Raises:
        StoreError: `n`, `dim` or `dtype` disagrees with `meta`, or the folder cannot be written to.
    """

    def __init__(self, path: Path, *, n: int, dim: int, dtype: DType, meta: EmbeddingsMeta) -> None:
        _check(n, dim, dtype, meta)
        self.path = path
        self._place: AbstractContextManager[Path] | None = atomic_path(path)
        self._handle = -1
        shape, kind = (int(n), int(dim)), DTYPES[dtype]
        try:
            self._temporary = self._place.__enter__()
            offsets, self._others = _reserve(self._temporary, path, shape, kind, meta)
            self._handle = os.open(self._temporary, os.O_RDWR)
        except OSError as error:
            self.abort()
            raise error if isinstance(error, StoreError) else cannot_write(path, error) from error
        head = head_line(schema.FEATURES, kind, shape)
        self._features = Block(path.name, Place(offsets[schema.FEATURES], shape, kind), head=head)
        self._extras = {extra.name: extra for extra in meta.extras}
        self._planes = {name: _planes(path, extra, offsets[name], shape, kind) for name, extra in self._extras.items()}

    def put(self, rows: npt.NDArray[np.int64], features: npt.NDArray[np.floating]) -> None:
        """Store some rows.

        Args:
            rows: int64 (b,): their places in the file; any order, each place once.
            features: (b, dim) float.

        Raises:
            StoreError: A row is out of range or given twice, the shape is wrong, a value is NaN or infinite or beyond
                the range of the number format, or the disk is full.
        """
        self._put(self._features, rows, features)

    def put_view(self, view: int, rows: npt.NDArray[np.int64], features: npt.NDArray[np.floating]) -> None:
        """Store some rows of one augmented view, as :meth:`put` does.

        Args:
            view: Its number, from 0.
            rows: int64 (b,).
            features: (b, dim) float.

        Raises:
            StoreError: As :meth:`put`; or `meta` says nothing of this view.
        """
        self._put(self._plane(VIEWS, view), rows, features)

    def put_quality(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.floating]) -> None:
        """Store the measures of some rows, as :meth:`put` does.

        Args:
            rows: int64 (b,).
            values: (b, m) float; NaN where there is nothing to measure.

        Raises:
            StoreError: As :meth:`put`, but for NaN; or `meta` says nothing of quality.
        """
        self._put(self._plane(QUALITY, 0), rows, values)

    def seal(self) -> None:
        """Add digest and seal, flush, rename. After this the file is there, whole.

        Raises:
            StoreError: Rows are missing, it was sealed or aborted before, or the disk is full.
        """
        if self._place is None:
            raise StoreError(f"{self.path} is sealed or aborted already")
        for block in self._blocks:
            missing = block.missing
            if missing.size:
                shown = ", ".join(map(str, missing[:5])) + (" …" if missing.size > 5 else "")
                fact = f"{missing.size} of {self._features.n} rows missing ({shown})"
                where = "" if block is self._features else f" of {block.where}"
                raise StoreError(f"{self.path} cannot be sealed: {fact}{where}")
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

    @property
    def _blocks(self) -> list[Block]:
        return [self._features, *(block for planes in self._planes.values() for block in planes)]

    def _plane(self, name: str, number: int) -> Block:
        planes = self._planes.get(name, ())
        if not 0 <= number < len(planes):
            raise StoreError(f"{self.path.name} was not begun with {name} number {number}, it has {len(planes)}")
        return planes[number]

    def _put(self, block: Block, rows: npt.NDArray[np.int64], values: npt.NDArray[np.floating]) -> None:
        if self._place is None:
            raise StoreError(f"{self.path} is sealed or aborted, no rows can be added")
        try:
            block.put(self._handle, rows, values)
        except OSError as error:
            raise error if isinstance(error, StoreError) else cannot_write(self.path, error) from error

    def _finish(self) -> None:
        """Close the file with digest and seal in it."""
        done = [block.finish(self._handle) for block in self._blocks]
        os.close(self._handle)
        self._handle = -1
        digest, hashes = done[0][0], iter([found for found, _ in done[1:]])
        with h5py.File(self._temporary, "r+", locking=False) as file:
            for name, values in self._others.items():
                array_digest(digest, name, values)
            data_digest(file, [schema.ITEMS], digest)
            for name, planes in self._planes.items():
                head = head_line(name, file[name].dtype, file[name].shape)
                planes_digest(digest, head, [next(hashes).digest() for _ in planes])
            set_own_attributes(file.id, {Key.DIGEST: digest.hexdigest()})
        add_seal(self._temporary, [checked for _, checked in done])


def _planes(
    path: Path, extra: Extra, offset: int, shape: tuple[int, int], dtype: np.dtype[np.floating]
) -> tuple[Block, ...]:
    """The blocks of a further dataset, one after the other in the file."""
    *outer, n, width = extra.shape(*shape)
    kind = extra.dtype(dtype)
    gaps, size = extra.name == QUALITY, n * width * kind.itemsize
    return tuple(
        Block(f"{extra.name} {k} of {path.name}", Place(offset + k * size, (n, width), kind), gaps=gaps)
        for k in range(int(np.prod(outer, dtype=np.int64)))
    )


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
) -> tuple[dict[str, int], dict[str, npt.NDArray[np.generic]]]:
    """Write everything but the rows.

    Returns:
        The byte at which features and extras begin, and the other arrays in the order in which they are digested.
    """
    others: dict[str, npt.NDArray[np.generic]] = {}
    blocks: dict[str, h5py.Dataset] = {}
    with create_file(temporary, largest=_largest(shape, dtype, meta.extras)) as file:
        set_own_attributes(file.id, schema.root_attributes(meta, path))
        features = blocks[schema.FEATURES] = create_contiguous(file, schema.FEATURES, shape, dtype)
        names = (path.stem if meta.slide is None else meta.slide.slide_id, schema.folder_name(path), meta.card.name)
        set_attributes(features.id, dict(zip(schema.TRIDENT_FEATURES, names, strict=True)))
        for extra in meta.extras:
            blocks[extra.name] = create_contiguous(file, extra.name, extra.shape(*shape), extra.dtype(dtype))
            set_own_attributes(blocks[extra.name].id, extra.attributes())
        if meta.slide is not None and meta.grid is not None:
            others[schema.COORDS] = meta.grid.coords_l0.astype(np.int64).reshape(-1, 2)
            others[schema.TISSUE] = meta.grid.tissue_fraction.astype(np.float32)
            stored = {name: write_contiguous(file, name, values) for name, values in others.items()}
            set_attributes(stored[schema.COORDS].id, schema.coords_attributes(meta.slide, meta.grid, path))
        else:
            write_texts(file, schema.ITEMS, meta.items)
        return {name: dataset.id.get_offset() or 0 for name, dataset in blocks.items()}, others


def _largest(shape: tuple[int, int], dtype: np.dtype[np.floating], extras: Sequence[Extra]) -> int:
    """Bytes of the largest dataset."""
    sizes = [int(np.prod(extra.shape(*shape), dtype=np.int64)) * extra.dtype(dtype).itemsize for extra in extras]
    return max([shape[0] * shape[1] * dtype.itemsize, *sizes])
