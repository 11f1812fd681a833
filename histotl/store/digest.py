"""Digests of the values of a file: of one that is there, and of one that is being written."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import h5py
import numpy as np
import numpy.typing as npt

from histotl.store.extras import EXTRAS
from histotl.store.hdf5 import BLOCK_BYTES


def blocks(dataset: h5py.Dataset, plane: tuple[int, ...] = ()) -> Iterator[npt.NDArray[np.generic]]:
    """The rows of a dataset (or of one of its planes) in order, in blocks of some MiB."""
    n, *width = dataset.shape[len(plane) :]
    row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(width, dtype=np.int64)))
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, n, step):
        yield dataset[(*plane, slice(start, start + step))]


def planes(dataset: h5py.Dataset) -> Iterator[tuple[int, ...]]:
    """Where each (n, width) plane of a dataset is, in order; one that has no more axes is one plane."""
    return np.ndindex(*dataset.shape[:-2])


def data_digest(file: h5py.File, names: Sequence[str], begun: hashlib._Hash | None = None) -> str:
    """SHA-256 over name, type, shape and bytes of the datasets that are there, in the order given.

    Text is hashed as UTF-8, each entry after its length, so that no two lists of texts hash alike. Of the extras, each
    plane is hashed for itself and its digest stands for its bytes: planes are written at the same time.

    Args:
        file: The file.
        names: Of its datasets.
        begun: Digest of the datasets before these, which is continued.
    """
    digest = hashlib.sha256() if begun is None else begun
    for name in names:
        dataset = file.get(name)
        if dataset is None:
            continue
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        if name in EXTRAS:
            hashes = [_plane_digest(dataset, plane) for plane in planes(dataset)]
            planes_digest(digest, head_line(name, dataset.dtype, dataset.shape), hashes)
            continue
        digest.update(head_line(name, "text" if is_text else dataset.dtype, dataset.shape))
        for block in blocks(dataset):
            if is_text:
                lengths = {size: size.to_bytes(8, "little") for size in set(map(len, block))}
                digest.update(b"".join([lengths[len(text)] + text for text in block]))
            else:
                digest.update(np.ascontiguousarray(block).data.cast("B"))
    return digest.hexdigest()


def array_digest(begun: hashlib._Hash, name: str, values: npt.NDArray[np.generic]) -> None:
    """Continue a digest with a dataset that holds an array, as :func:`data_digest` does with the file's own."""
    begun.update(head_line(name, values.dtype, values.shape))
    if values.size:
        begun.update(np.ascontiguousarray(values).data.cast("B"))


def planes_digest(begun: hashlib._Hash, head: bytes, hashes: Iterable[bytes]) -> None:
    """Continue a digest with an extra, as :func:`data_digest` does, from the SHA-256 of each of its planes."""
    begun.update(head + b"".join(hashes))


def head_line(name: str, kind: np.dtype[np.generic] | str, shape: tuple[int, ...]) -> bytes:
    """What stands before the values of a dataset in its digest."""
    return f"{name} {kind if isinstance(kind, str) else kind.str} {shape}\n".encode()


class RunningDigest:
    """SHA-256 and CRC-32 of one block of rows, taken while they are written.

    Rows that come in order are hashed as they pass, still warm in the processor's cache; the rows after the first gap
    are read back at the end.

    Args:
        n: Rows.
        row_bytes: Size of one.
        head: What the SHA-256 begins with.
    """

    def __init__(self, n: int, row_bytes: int, head: bytes) -> None:
        self._rows, self._row_bytes, self._head = n, row_bytes, head
        self._sha, self._crc = hashlib.sha256(head), 0
        self._next = 0

    def add(self, row: int, values: memoryview) -> None:
        """Take note of neighbouring rows that were written.

        Args:
            row: Number of the first.
            values: Their bytes.
        """
        if row > self._next or self._next < 0:
            return
        # Rows that are written again, or an interrupt within these lines, leave a number that no row has:
        # everything is hashed anew at the end.
        hashed, self._next = self._next, -1
        if row < hashed:
            return
        self._sha.update(values)
        self._crc = zlib.crc32(values, self._crc)
        self._next = row + len(values) // self._row_bytes

    def finish(self, read: Callable[[int, int], bytes]) -> tuple[hashlib._Hash, int]:
        """Both digests over all rows.

        Args:
            read: Gives the bytes of the rows from one up to another, as they were written.

        Returns:
            The SHA-256 of head and values, which may be continued, and the CRC-32 of the values.
        """
        if self._next < 0:
            self._sha, self._crc, self._next = hashlib.sha256(self._head), 0, 0
        step = max(1, BLOCK_BYTES // self._row_bytes)
        while (start := self._next) < self._rows:
            self.add(start, memoryview(read(start, min(self._rows, start + step))))
        return self._sha, self._crc


def _plane_digest(dataset: h5py.Dataset, plane: tuple[int, ...]) -> bytes:
    digest = hashlib.sha256()
    for block in blocks(dataset, plane):
        digest.update(np.ascontiguousarray(block).data.cast("B"))
    return digest.digest()
