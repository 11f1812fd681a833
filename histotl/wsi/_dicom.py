"""The one thing that a folder scan must know of a DICOM file: its series.

A walk over the data elements up to (0020,000E), as DICOM PS3.5 §7 lays them out; OpenSlide does the real reading.
"""

from __future__ import annotations

import struct
from pathlib import Path

_SERIES = (0x0020, 0x000E)
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations with a length of four bytes after two reserved ones."""

_UNDEFINED = 0xFFFFFFFF
_HEAD_BYTES = 1 << 18
"""The series stands in front of the pixels, and behind no more than some sequences."""

_IMPLICIT = b"1.2.840.10008.1.2"


def series_of(path: Path) -> str:
    """Series instance UID of a DICOM file, or an empty text where there is none to be found."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    if data[128:132] != b"DICM":
        return ""
    position, explicit = 132, True
    try:
        while position < len(data):
            tag, length, start = _element(data, position, explicit=explicit or data[position : position + 2] == b"\2\0")
            if tag > _SERIES:
                return ""
            if length == _UNDEFINED:
                position = _after_sequence(data, start, explicit=explicit)
                continue
            value = data[start : start + length].rstrip(b"\0 ")
            if tag == _SERIES:
                return value.decode("ascii", "replace")
            if tag == (0x0002, 0x0010):
                explicit = value != _IMPLICIT
            position = start + length
    except struct.error:
        return ""
    return ""


def _element(data: bytes, position: int, *, explicit: bool) -> tuple[tuple[int, int], int, int]:
    """(tag, length of the value, where it begins)."""
    group, number = struct.unpack_from("<HH", data, position)
    if group == 0xFFFE or not explicit:
        return (group, number), struct.unpack_from("<I", data, position + 4)[0], position + 8
    if data[position + 4 : position + 6] in _LONG:
        return (group, number), struct.unpack_from("<I", data, position + 8)[0], position + 12
    return (group, number), struct.unpack_from("<H", data, position + 6)[0], position + 8


def _after_sequence(data: bytes, position: int, *, explicit: bool) -> int:
    """Where a sequence of undefined length ends; its items are walked, since they may hold sequences again."""
    depth = 1
    while depth:
        tag, length, start = _element(data, position, explicit=explicit)
        position = start
        if tag in ((0xFFFE, 0xE0DD), (0xFFFE, 0xE00D)):
            depth -= 1
        elif length == _UNDEFINED:
            depth += 1
        elif tag != (0xFFFE, 0xE000):
            position = start + length
    return position
