"""Feature rows straight from their files, through memory maps that take a bounded part of the memory."""

from __future__ import annotations

import mmap
import resource
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from histotl.core.errors import StoreError
from histotl.learn.finite import check_finite
from histotl.store.embeddings import Embeddings

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

OPEN_FILES = 4096
"""Maps held at a time, each of which holds an open file; fewer where the system allows a process fewer files."""

TOUCH = 1 << 21
"""Bytes that may come into memory with the byte that was read: systems map cached pages in windows, of a huge page at
the most where files are cached in such."""

COPY_ROWS = 8192
"""Rows copied at a time into a scratch file."""


class Maps:
    """Rows of several files by memory map.

    A file whose features lie in one block is mapped where they lie. Files that only HDF5 can read (chunked or
    compressed ones of other tools) are copied once into a scratch file, in the system's folder for temporary files,
    which vanishes with the process. Pages that were read are given back to the system before they come to more than
    the budget; the system's own cache keeps them as long as nothing else needs the room.

    Args:
        files: The files.
        budget: Bytes of memory that the pages may take.
    """

    def __init__(self, files: Sequence[Embeddings], budget: int) -> None:
        self._files, self._budget = files, budget
        self._maps: OrderedDict[tuple[int, bool], Floats] = OrderedDict()
        self._most, self._touched = _open_files(), 0
        self._lock = Lock()
        self._scratch: npt.NDArray[np.uint8] | None = None
        self._unpacked: dict[int, Floats] = {}

    def read(self, file: int, local: Indices, view: int | None, out: Floats) -> None:
        """Copy rows of one file, as they are on disk.

        Args:
            file: Number of the file.
            local: int64 (b,) ascending row numbers within it.
            view: The augmented view wanted, or None for the plain rows.
            out: (b, D) of the file's number format.
        """
        # The next step is read by a thread of its own while this one may look at the validation set.
        with self._lock:
            rows = self._plane(file, view)
            coming = TOUCH * len(np.unique(local * rows.itemsize * rows.shape[1] // TOUCH))
            if self._touched + coming > self._budget:
                self._release()
            self._touched += coming
        # With a buffer and a mode other than "raise" nothing is copied twice.
        np.take(rows, local, axis=0, out=out, mode="clip")

    def _release(self) -> None:
        """Give the pages that were read back to the system; the maps stay."""
        for values in (*self._maps.values(), self._scratch):
            if values is not None and isinstance(values.base, mmap.mmap):
                values.base.madvise(mmap.MADV_DONTNEED)
        self._touched = 0

    @cached_property
    def _chunked(self) -> list[int]:
        """Files that only HDF5 can read."""
        return [number for number, file in enumerate(self._files) if not _is_one_block(file)]

    def _plane(self, file: int, view: int | None) -> Floats:
        """All rows of one file, or of one of its views."""
        if view is None and file in self._chunked:
            if not self._unpacked:
                self._unpack()
            return self._unpacked[file]
        key = (file, view is not None)
        found = self._maps.get(key)
        if found is None:
            source = self._files[file]
            with source:  # the map is kept here, and nowhere else
                mapped = source.features if view is None else source.views
            if not isinstance(mapped, np.ndarray):
                raise StoreError(f"{source.path} has changed since it was opened", hint="run the command again")
            found = self._maps[key] = mapped
            if len(self._maps) > self._most:
                self._maps.popitem(last=False)
        self._maps.move_to_end(key)
        plain = found.view(np.ndarray)  # indexing a memory map itself costs a second look at every result
        return plain if view is None else plain[view]

    def _unpack(self) -> None:
        """Copy all files that cannot be mapped, one after the other, into one file without a name."""
        files = [self._files[number] for number in self._chunked]
        size = sum(file.n * file.dim * file.dtype.itemsize for file in files)
        folder, cure = tempfile.gettempdir(), "set TMPDIR to a folder with room, or give more --memory-gb"
        if (free := shutil.disk_usage(folder).free) < size:
            fact = f"{len(files)} files of features must be unpacked: {size / 2**30:.1f} GiB in {folder}"
            raise StoreError(f"{fact}, where {free / 2**30:.1f} GiB are free", hint=cure)
        try:
            with tempfile.TemporaryFile() as scratch:
                places = [_append(scratch, file) for file in files]
                self._scratch = np.memmap(scratch, np.uint8, mode="r")
        except OSError as error:
            raise StoreError(f"features cannot be unpacked into {folder}: {error}", hint=cure) from error
        everything = self._scratch.view(np.ndarray)
        for number, file, place in zip(self._chunked, files, places, strict=True):
            values = everything[place : place + file.n * file.dim * file.dtype.itemsize]
            self._unpacked[number] = values.view(file.dtype).reshape(file.n, file.dim)


def _is_one_block(file: Embeddings) -> bool:
    with file:
        return isinstance(file.features, np.ndarray)


def _append(scratch: BinaryIO, file: Embeddings) -> int:
    """Write a file's rows at the end of the scratch file, at the border of a page; gives the first byte."""
    place = -(-scratch.seek(0, 2) // mmap.PAGESIZE) * mmap.PAGESIZE
    scratch.seek(place)
    with file:
        source = file.features
        for start in range(0, file.n, COPY_ROWS):
            part = np.ascontiguousarray(source[start : start + COPY_ROWS])
            scratch.write(check_finite(part, str(file.path)).data.cast("B"))
    scratch.flush()
    return place


def _open_files() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_FILES if soft == resource.RLIM_INFINITY else max(1, min(OPEN_FILES, soft // 2))
