"""The few HDF5 operations that the store is made of: safe opening, plain datasets, attributes, digests.

A stranger's file is not trusted: only datasets of numbers or text that lie inside the file itself are read. Links to
other files, external storage, virtual datasets, references and opaque types are refused, and nothing is evaluated or
unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from histotl.core.errors import CorruptFileError, HistotlError, StoreError

AttributeValue = str | int | float | np.integer | np.floating | npt.NDArray[np.float64]

BLOCK_BYTES = 8 * 2**20
"""Most bytes that are held while a dataset is walked through."""

_ALIGN_BYTES = 4096
"""Datasets begin at page borders, so that a memory map of one is aligned."""


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
    try:
        # Files with a final name never change, and locking fails on many network file systems.
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist", hint="check the path, or run histotl embed first") from error
    except (PermissionError, IsADirectoryError) as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}", hint="check the path and its rights") from error
    except (OSError, RuntimeError, ValueError) as error:
        cure = "delete it and make it again; histotl check lists all such files"
        raise CorruptFileError(f"{path} is not a whole HDF5 file: {error}", hint=cure) from error
    with reading(path), file:
        yield file


@contextmanager
def create_file(path: Path) -> Iterator[h5py.File]:
    """Make an HDF5 file for the layout of this room: few large contiguous datasets at page borders.

    The format is that of HDF5 1.8, the oldest with checksums over all its own structures: a flipped bit in one is an
    error when the file is opened, where older formats crash or give other numbers.

    Raises:
        StoreError: The folder cannot be written to, or the disk is full.
    """
    places = {"alignment_threshold": _ALIGN_BYTES, "alignment_interval": _ALIGN_BYTES}
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
        dataset[...] = values
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
    link = group.get(name, getlink=True)
    if link is None:
        return None
    where = f"{group.file.filename}: {name!r}"
    cure = "only numbers and text inside the file itself are read"
    if not isinstance(link, h5py.HardLink):
        raise CorruptFileError(f"{where} is a link to elsewhere", hint=cure)
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise CorruptFileError(f"{where} is a {type(found).__name__.lower()}, not a dataset", hint=cure)
    if found.external or found.is_virtual:
        raise CorruptFileError(f"{where} keeps its values in another file", hint=cure)
    good = h5py.check_string_dtype(found.dtype) is not None if text else found.dtype.kind in "fiu"
    if not good or found.shape is None:
        raise CorruptFileError(f"{where} has the type {found.dtype}", hint=cure)
    return found


def text_attribute(attributes: h5py.AttributeManager, name: str) -> str | None:
    """Value of a text attribute; None when it is missing or not text."""
    value = attributes.get(name) if name in attributes else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return value if isinstance(value, str) else None


def number_attribute(attributes: h5py.AttributeManager, name: str) -> float | None:
    """Value of a numeric attribute; None when it is missing or not one number."""
    value = attributes.get(name) if name in attributes else None
    if isinstance(value, int | float | np.integer | np.floating):
        return float(value)
    return None


def set_attributes(target: h5py.File | h5py.Dataset, values: Mapping[str, AttributeValue]) -> None:
    """Write attributes: text as variable-length UTF-8, whole numbers as int64, others as float64."""
    for name, value in values.items():
        if isinstance(value, int | np.integer):
            target.attrs[name] = np.int64(value)
        elif isinstance(value, float | np.floating):
            target.attrs[name] = np.float64(value)
        else:
            target.attrs[name] = value


def set_own_attributes(file: h5py.File, values: Mapping[str, AttributeValue]) -> None:
    """The same for the root, with text of fixed length: it lies in the header, under the header's checksum.

    Text of variable length lies in a heap that has none; TRIDENT's attributes are of that kind, ours need not be.
    """
    for name, value in values.items():
        if isinstance(value, str):
            data = value.encode()
            file.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))
        else:
            set_attributes(file, {name: value})


def blocks(dataset: h5py.Dataset) -> Iterator[npt.NDArray[np.generic]]:
    """The rows of a dataset in order, in blocks of some MiB."""
    row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64)))
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, dataset.shape[0], step):
        yield dataset[start : start + step]


def data_digest(file: h5py.File, names: Sequence[str]) -> str:
    """SHA-256 over name, type, shape and bytes of the datasets that are there, in the order given.

    Text is hashed as UTF-8, each entry after its length, so that no two lists of texts hash alike.
    """
    digest = hashlib.sha256()
    for name in names:
        dataset = file.get(name)
        if dataset is None:
            continue
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        digest.update(f"{name} {'text' if is_text else dataset.dtype.str} {dataset.shape}\n".encode())
        for block in blocks(dataset):
            if is_text:
                for text in block:
                    digest.update(len(text).to_bytes(8, "little") + text)
            else:
                digest.update(np.ascontiguousarray(block).data.cast("B"))
    return digest.hexdigest()


def not_finite(values: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Rows of (b, d) that hold NaN or infinity."""
    if values.dtype == np.float16 and values.dtype.isnative:
        # All exponent bits set; four times faster than isfinite, which converts each number first.
        bad = (values.view(np.uint16) & 0x7C00) == 0x7C00
    else:
        bad = ~np.isfinite(values)
    return np.flatnonzero(bad.any(axis=1)) if bad.any() else np.zeros(0, dtype=np.intp)
