"""The seal: one line after the end of the HDF5 data with the size and the CRC-32 of every byte before it.

HDF5 ignores what follows its end, so other tools see a plain file. We see any flipped bit and any later change without
letting the library parse damaged bytes, which can hang it. The seal is against accidents; it is no signature.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from histotl.store.hdf5 import BLOCK_BYTES

_LINE = "\nhistotl-seal-1 size={size:016d} crc32={crc:08x}\n"
_PATTERN = re.compile(rb"\nhistotl-seal-1 size=(\d{16}) crc32=([0-9a-f]{8})\n")
_LENGTH = len(_LINE.format(size=0, crc=0))

_POLYNOMIAL = 0xEDB88320
"""Of CRC-32 (IEEE 802.3), bits reversed."""

_ONE = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Bytes of a file whose CRC-32 is known, so that they need not be read again.

    Args:
        start: First of them.
        size: Their number.
        crc: Their CRC-32.
    """

    start: int
    size: int
    crc: int


def add_seal(path: Path, checked: Iterable[Checked] = ()) -> None:
    """Append the seal to a finished file.

    Args:
        path: The file.
        checked: The parts that need not be read.
    """
    size = path.stat().st_size
    with path.open("rb+", buffering=0) as file:
        crc = place = 0
        for part in sorted((part for part in checked if part.size), key=lambda part: part.start):
            crc = crc_of_both(_crc(file, part.start - place, crc), part.crc, part.size)
            place = part.start + part.size
            file.seek(place)
        crc = _crc(file, size - place, crc)
        file.seek(size)
        file.write(_LINE.format(size=size, crc=crc).encode())


def seal_problem(path: Path) -> str:
    """What the seal says against the file; empty when every byte is as it was sealed.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size - _LENGTH
    with path.open("rb") as file:
        file.seek(max(0, size))
        found = _PATTERN.fullmatch(file.read())
    if found is None:
        return "the seal is missing: the file is cut short or was changed after it was made"
    if int(found[1]) != size:
        return f"the file has {size} bytes, its seal says {int(found[1])}"
    with path.open("rb", buffering=0) as file:
        crc = _crc(file, size)
    if int(found[2], 16) != crc:
        return "the seal differs: bytes of the file were changed after it was made"
    return ""


def has_seal(path: Path) -> bool:
    """Whether a file ends with a seal, intact or not."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LENGTH))
        return file.read().startswith(b"\nhistotl-seal-")


def crc_of_both(first: int, second: int, size: int) -> int:
    """CRC-32 of two pieces of data put together.

    A CRC is a remainder of polynomials over GF(2), so data behind the first piece multiply its remainder by x to the
    number of their bits.

    Args:
        first: CRC-32 of the first piece.
        second: The same of the second.
        size: Bytes of the second.
    """
    shift, power = _ONE, _ONE >> 8  # x to the 0, x to the 8: one byte
    while size:
        if size & 1:
            shift = _product(shift, power)
        power, size = _product(power, power), size >> 1
    return _product(first, shift) ^ second


def _product(a: int, b: int) -> int:
    """Of two polynomials modulo the CRC's; bit 31 is the coefficient of x to the 0."""
    result = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            result ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result


def _crc(file: io.FileIO, size: int, crc: int = 0) -> int:
    """Of the next bytes of a file, after others with the CRC given."""
    while size and (block := file.read(min(BLOCK_BYTES, size))):
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc
