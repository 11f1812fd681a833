"""The seal: one line after the end of the HDF5 data with the size and the CRC-32 of every byte before it.

HDF5 ignores what follows its end, so other tools see a plain file. We see any flipped bit and any later change without
letting the library parse damaged bytes, which can hang it. The seal is against accidents; it is no signature.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from histotl.store.hdf5 import BLOCK_BYTES

_LINE = "\nhistotl-seal-1 size={size:016d} crc32={crc:08x}\n"
_PATTERN = re.compile(rb"\nhistotl-seal-1 size=(\d{16}) crc32=([0-9a-f]{8})\n")
_LENGTH = len(_LINE.format(size=0, crc=0))


def add_seal(path: Path) -> None:
    """Append the seal to a finished file."""
    size = path.stat().st_size
    line = _LINE.format(size=size, crc=_crc(path, size))
    with path.open("ab") as file:
        file.write(line.encode())


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
    if int(found[2], 16) != _crc(path, size):
        return "the seal differs: bytes of the file were changed after it was made"
    return ""


def has_seal(path: Path) -> bool:
    """Whether a file ends with a seal, intact or not."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LENGTH))
        return file.read().startswith(b"\nhistotl-seal-")


def _crc(path: Path, size: int) -> int:
    crc, left = 0, size
    with path.open("rb", buffering=0) as file:
        while left and (block := file.read(min(BLOCK_BYTES, left))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return crc
