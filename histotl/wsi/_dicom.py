"""Walk over the data elements of a DICOM file, as DICOM PS3.5 §7 lays them out.

Explicit and implicit little endian. Values are skipped, not read, unless somebody asks for them, and no length in a
file is believed beyond the file's end. OpenSlide does the real opening; this serves the folder scan, which must know
the series of a file, and the direct access to frames.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

TRANSFER_SYNTAX = 0x00020010
SERIES = 0x0020000E
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

UNDEFINED = 0xFFFFFFFF
"""Length of a sequence, an item or encapsulated pixels that end with a mark."""

FIRST_ELEMENT = 132
"""Behind the preamble and the letters DICM."""

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations with a length of four bytes after two reserved ones."""

_IMPLICIT = b"1.2.840.10008.1.2"
_HEAD_BYTES = 1 << 18
"""The series stands in front of the pixels, and behind no more than some sequences."""

_SMALL_WINDOW, _LARGE_WINDOW = 1 << 14, 1 << 20
"""Bytes of the first read and of the largest: most files of a folder are asked for one number near their start."""

_TAG = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<I")


class Element(NamedTuple):
    """Header of a data element.

    Args:
        tag: Group and number as one number of 32 bits.
        vr: Value representation of two letters; empty in implicit files and for the marks of sequences.
        length: Of the value in bytes, or :data:`UNDEFINED`.
        start: Byte of the file where the value begins.
    """

    tag: int
    vr: bytes
    length: int
    start: int


class ElementReader:
    """Headers and values of an open file, served from few large reads.

    Args:
        file: Open for reading; stays with its owner.
        limit: Bytes behind which the file counts as ended; all of it when None.
    """

    def __init__(self, file: BinaryIO, limit: int | None = None) -> None:
        self._file = file
        size = file.seek(0, 2)
        self.size = size if limit is None else min(size, limit)
        self.explicit = True
        self._data, self._base, self._window = b"", 0, _SMALL_WINDOW

    def is_dicom(self) -> bool:
        """Whether it begins as a DICOM file."""
        return self.size >= FIRST_ELEMENT and self.take(128, 4) == b"DICM"

    def take(self, position: int, count: int) -> bytes:
        """Bytes from a position of the file.

        Raises:
            ValueError: The file ends before; nothing was allocated then.
        """
        offset = self._at(position, count)
        return self._data[offset : offset + count]

    def peek(self, position: int, count: int) -> bytes:
        """As :meth:`take`, by a read of its own: for headers that lie far from each other.

        Raises:
            ValueError: The file ends before.
        """
        self._check(position, count)
        self._file.seek(position)
        data = self._file.read(count)
        if len(data) < count:
            raise ValueError(f"the file ends before byte {position + count}")
        return data

    def element(self, position: int) -> Element:
        """Header of the element that begins at a position.

        Raises:
            ValueError: The file ends inside it.
        """
        offset = self._at(position, 8)
        group, number, vr, length = _TAG.unpack_from(self._data, offset)
        tag = group << 16 | number
        if group == 0xFFFE or not (self.explicit or group == 2):
            return Element(tag, b"", _LENGTH.unpack_from(self._data, offset + 4)[0], position + 8)
        if vr in _LONG:
            return Element(tag, vr, _LENGTH.unpack(self.take(position + 8, 4))[0], position + 12)
        return Element(tag, vr, length, position + 8)

    def after(self, element: Element) -> int:
        """Where the next element begins; a sequence of undefined length is walked to its end.

        Raises:
            ValueError: The file ends inside the sequence.
        """
        if element.length != UNDEFINED:
            return element.start + element.length
        position, depth = element.start, 1
        while depth:
            # Items of a sequence may hold sequences again, which end with marks of their own.
            inner = self.element(position)
            position = inner.start
            if inner.tag in (SEQUENCE_END, ITEM_END):
                depth -= 1
            elif inner.length == UNDEFINED:
                depth += 1
            elif inner.tag != ITEM:
                position += inner.length
        return position

    def _at(self, position: int, count: int) -> int:
        """Offset in the window of bytes that it holds from now on."""
        offset = position - self._base
        if offset < 0 or offset + count > len(self._data):
            self._check(position, count)
            self._data = self.peek(position, min(max(count, self._window), self.size - position))
            self._base, offset = position, 0
            self._window = min(4 * self._window, _LARGE_WINDOW)
        return offset

    def _check(self, position: int, count: int) -> None:
        if position + count > self.size:
            raise ValueError(f"the file ends before byte {position + count}")


def text_of(value: bytes) -> str:
    """A text or UID without the padding."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def series_of(path: Path) -> str:
    """Series instance UID of a DICOM file, or an empty text where there is none to be found."""
    try:
        with path.open("rb", buffering=0) as file:
            return _series(ElementReader(file, _HEAD_BYTES))
    except (OSError, ValueError):
        return ""


def _series(reader: ElementReader) -> str:
    if not reader.is_dicom():
        return ""
    position = FIRST_ELEMENT
    while position < reader.size:
        element = reader.element(position)
        if element.tag > SERIES:
            return ""
        if element.tag == SERIES:
            return text_of(reader.take(element.start, element.length))
        if element.tag == TRANSFER_SYNTAX:
            reader.explicit = reader.take(element.start, element.length).rstrip(b"\0 ") != _IMPLICIT
        position = reader.after(element)
    return ""
