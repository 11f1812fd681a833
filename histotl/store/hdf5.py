"""The few HDF5 operations that the store is made of: safe opening and plain datasets.

A stranger's file is not trusted: only datasets of numbers or text that lie inside the file itself are read. Links to
other files, external storage, virtual datasets, references and opaque types are refused, and nothing is evaluated or
unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from histotl.core.errors import CorruptFileError, HistotlError, StoreError

BLOCK_BYTES = 8 * 2**20
"""Most bytes that are held while a dataset is walked through."""

_ALIGN_BYTES = 4096
"""Datasets begin at page borders, so that a memory map of one is aligned."""

_LARGE_BYTES, _LARGE_ALIGN_BYTES = 4 * 2**20, 64 * 2**10
"""Large ones at wider borders: the system then caches what is written in larger pieces, which are read faster."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes h5py raise into one error.

    Raises:
        CorruptFileError: The library could not read what it found.
    """
    try:
        yield
    except HistotlError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        shown = str(error) or type(error).__name__
        raise CorruptFileError(f"{path} cannot be read: {shown}", hint="delete it and make it again") from error


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        StoreError: There is no such file, or it may not be read.
        CorruptFileError: It is not HDF5, is cut short, or is damaged where the caller reads.
    """
    file = h5py.File(_open(path))
    with reading(path), file:
        yield file


@contextmanager
def open_root(path: Path) -> Iterator[h5py.h5g.GroupID]:
    """The same, as HDF5's own handle, which is one of the root group too: a third of the cost.

    Raises:
        StoreError: There is no such file, or it may not be read.
        CorruptFileError: It is not HDF5, is cut short, or is damaged where the caller reads.
    """
    handle = _open(path)
    try:
        with reading(path):
            yield handle
    finally:
        handle.close()


def _open(path: Path) -> h5py.h5f.FileID:
    try:
        return h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=_reading_access())
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist", hint="check the path, or run histotl embed first") from error
    except (PermissionError, IsADirectoryError) as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}", hint="check the path and its rights") from error
    except (OSError, RuntimeError, ValueError) as error:
        cure = "delete it and make it again; histotl check lists all such files"
        raise CorruptFileError(f"{path} is not a whole HDF5 file: {error}", hint=cure) from error


@cache
def _reading_access() -> h5py.h5p.PropFAID:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)  # closing the file closes everything in it
    # Files with a final name never change, and locking fails on many network file systems.
    access.set_file_locking(use_file_locking=False, ignore_when_disabled=False)
    return access


@contextmanager
def create_file(path: Path, *, largest: int = 0) -> Iterator[h5py.File]:
    """Make an HDF5 file for the layout of this room: few large contiguous datasets at page borders.

    The format is that of HDF5 1.8, the oldest with checksums over all its own structures: a flipped bit in one is an
    error when the file is opened, where older formats crash or give other numbers.

    Args:
        path: The file.
        largest: Bytes of its largest dataset.

    Raises:
        StoreError: The folder cannot be written to, or the disk is full.
    """
    is_large = largest >= _LARGE_BYTES
    places = {
        "alignment_threshold": _LARGE_BYTES if is_large else _ALIGN_BYTES,
        "alignment_interval": _LARGE_ALIGN_BYTES if is_large else _ALIGN_BYTES,
    }
    try:
        with h5py.File(path, "w", locking=False, libver=("v108", "v108"), **places) as file:
            yield file
    except HistotlError:
        raise
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> StoreError:
    """The error for a file that the system did not let us write."""
    return StoreError(f"cannot write {path}: {error}", hint="check the folder's rights and the free space on its disk")


def create_contiguous(
    file: h5py.File | h5py.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> h5py.Dataset:
    """Reserve one uncompressed block of the file; its bytes are not written yet."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(np.dtype(dtype))
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist))


def write_contiguous(file: h5py.File | h5py.Group, name: str, values: npt.NDArray[np.generic]) -> h5py.Dataset:
    """Store an array as one block."""
    dataset = create_contiguous(file, name, values.shape, values.dtype)
    if values.size:
        # `dataset[...] =` costs three times that.
        dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values))
    return dataset


def write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Store lines of text as variable-length UTF-8."""
    dataset = file.create_dataset(name, (len(texts),), dtype=h5py.string_dtype("utf-8"))
    if texts:
        dataset[...] = np.array(texts, dtype=object)


def get_dataset(group: h5py.File | h5py.Group, name: str, *, text: bool = False) -> h5py.Dataset | None:
    """A dataset of numbers (or of `text`) that lies in the file itself; None when there is no such name.

    Raises:
        CorruptFileError: The name is a link, a group, or a dataset of another type or stored elsewhere.
    """
    found = find_dataset(group.id, name, text=text)
    return None if found is None else h5py.Dataset(found)


def find_dataset(group: h5py.h5g.GroupID, name: str, *, text: bool = False) -> h5py.h5d.DatasetID | None:
    """The same as HDF5's own handle.

    Raises:
        CorruptFileError: The name is a link, a group, or a dataset of another type or stored elsewhere.
    """
    key = name.encode()
    if not group.links.exists(key):
        return None
    if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise _refused(group, name, "is a link to elsewhere")
    found = h5py.h5o.open(group, key)
    if not isinstance(found, h5py.h5d.DatasetID):
        kind = "group" if isinstance(found, h5py.h5g.GroupID) else "named type"
        raise _refused(group, name, f"is a {kind}, not a dataset")
    dtype = found.dtype
    good = h5py.check_string_dtype(dtype) is not None if text else dtype.kind in "fiu"
    # A place in this file says at once that the values are neither elsewhere nor missing.
    if found.get_offset() is None:
        stored = found.get_create_plist()
        if stored.get_layout() == h5py.h5d.VIRTUAL or stored.get_external_count():
            raise _refused(group, name, "keeps its values in another file")
        good = good and found.get_space().get_simple_extent_type() != h5py.h5s.NULL
    if not good:
        raise _refused(group, name, f"has the type {dtype}")
    return found


def _refused(group: h5py.h5g.GroupID, name: str, fact: str) -> CorruptFileError:
    where = f"{os.fsdecode(h5py.h5f.get_name(group))}: {name!r}"
    return CorruptFileError(f"{where} {fact}", hint="only numbers and text inside the file itself are read")


def not_finite(values: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Rows of (b, d) that hold NaN or infinity."""
    if values.dtype == np.float16 and values.dtype.isnative:
        # All exponent bits set; four times faster than isfinite, which converts each number first.
        bad = (values.view(np.uint16) & 0x7C00) == 0x7C00
    else:
        bad = ~np.isfinite(values)
    return np.flatnonzero(bad.any(axis=1)) if bad.any() else np.zeros(0, dtype=np.intp)
