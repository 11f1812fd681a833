"""The tile index of a TIFF, parsed without a library: opening a slide of 25,600 tiles costs well under a millisecond.

Classic TIFF and BigTIFF, both byte orders, by TIFF 6.0 §2 and the BigTIFF design. Only what tells where tiles lie and
how they are compressed is kept, and the description; other metadata stay with OpenSlide and tifffile. NDPI bends the
format (64-bit offsets in 32-bit fields) and is not read here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 266, 274, 277
PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, SAMPLE_FORMAT = 284, 317, 322, 323, 324, 325, 339
JPEG_TABLES, DESCRIPTION, DEPTH = 347, 270, 32997

_KEPT = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES, PLANAR, PREDICTOR),
    *(TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, SAMPLE_FORMAT, JPEG_TABLES, DESCRIPTION, DEPTH),
}
_TYPES = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
"""NumPy type of a TIFF field type; rationals and floats are none of ours."""

_Tags = dict[int, npt.NDArray[np.int64] | bytes]

_PAGES_MAX = 4096
_VALUES_MAX = 1 << 28
"""More than any file has; a damaged one must not ask for all memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TiffPage:
    """One tiled page: its geometry and where its tiles lie. Immutable, shared by all who have the file open.

    Args:
        width: Of the picture in pixels.
        height: Of the picture in pixels.
        tile_width: Of a tile in pixels.
        tile_height: Of a tile in pixels.
        offsets: int64 (tiles,), bytes from the start of the file.
        counts: int64 (tiles,), bytes of each tile; 0 where the file has none.
        compression: TIFF tag 259.
        photometric: TIFF tag 262.
        samples: Samples per pixel.
        bits: Bits of each sample.
        planar: 1 when the samples of a pixel lie together.
        predictor: 2 when the codec stored differences along rows.
        orientation: 1 when row 0 is the top and column 0 the left.
        fill_order: 1 when the highest bit comes first.
        sample_format: 1 for unsigned integers.
        jpeg_tables: What tiles share, an abbreviated JPEG stream; empty where they are complete.
        header: For NDPI, the JPEG header that each tile lacks; empty otherwise.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    compression: int
    photometric: int
    samples: int = 3
    bits: tuple[int, ...] = (8, 8, 8)
    planar: int = 1
    predictor: int = 1
    orientation: int = 1
    fill_order: int = 1
    sample_format: int = 1
    jpeg_tables: bytes = field(default=b"", repr=False)
    header: bytes = field(default=b"", repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return math.ceil(self.height / self.tile_height), math.ceil(self.width / self.tile_width)


class TiffFormatError(ValueError):
    """Not a TIFF, or one that contradicts itself; stays inside the readers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TiffIndex:
    """What is kept of a TIFF.

    Args:
        pages: The tiled pages of its main chain, in the order of the file.
        description: Of its first page, tiled or not; empty where there is none.
        starts_tiled: Whether the first page is tiled.
        is_flat: Whether no page is a volume.
        is_little: Whether the lower byte comes first.
    """

    pages: list[TiffPage]
    description: str
    starts_tiled: bool
    is_flat: bool
    is_little: bool


def tiff_index(path: Path) -> TiffIndex:
    """Parse a TIFF.

    Raises:
        TiffFormatError: Not a TIFF, or damaged.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            found = _directories(file)
            pages = [_page(tags) for tags in found]
            file.seek(0)
            is_little = file.read(2) == b"II"
        except (struct.error, KeyError, IndexError, OverflowError) as error:
            raise TiffFormatError(f"the TIFF directory cannot be read: {error}") from error
    text = found[0].get(DESCRIPTION, b"") if found else b""
    text = text if isinstance(text, bytes) else text.astype(np.uint8).tobytes()
    return TiffIndex(
        pages=[page for page in pages if page is not None],
        description=text.rstrip(b"\0").decode("utf-8", errors="replace"),
        starts_tiled=bool(pages) and pages[0] is not None,
        is_flat=all(int(tags[DEPTH][0]) == 1 for tags in found if DEPTH in tags),
        is_little=is_little,
    )


def tiled_pages(path: Path) -> list[TiffPage]:
    """The tiled pages of the main chain of a TIFF, in the order of the file; errors as in :func:`tiff_index`."""
    return tiff_index(path).pages


def _directories(file: BinaryIO) -> list[_Tags]:
    """Tags of every page."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack_from(f"{order}H", head, 2)[0] if order else 0
    if order is None or version not in (42, 43):
        raise TiffFormatError("not a TIFF file")
    big = version == 43
    position = struct.unpack_from(f"{order}Q", head, 8)[0] if big else struct.unpack_from(f"{order}I", head, 4)[0]
    pages: list[_Tags] = []
    seen: set[int] = set()
    while position:
        if position in seen or len(pages) >= _PAGES_MAX:
            raise TiffFormatError("its pages go round in a circle")
        seen.add(position)
        tags, position = _directory(file, position, order, big=big)
        pages.append(tags)
    return pages


def _directory(file: BinaryIO, position: int, order: str, *, big: bool) -> tuple[_Tags, int]:
    """Tags of one page, and where the next page begins; 0 after the last."""
    count_code, entry, link = ("Q", f"{order}HHQ8s", "Q") if big else ("H", f"{order}HHI4s", "I")
    count_bytes, link_bytes, entry_bytes = struct.calcsize(count_code), struct.calcsize(link), struct.calcsize(entry)
    file.seek(position)
    (count,) = struct.unpack(order + count_code, file.read(count_bytes))
    if count > 65_535:
        raise TiffFormatError(f"a page with {count} tags")
    table = file.read(count * entry_bytes + link_bytes)
    tags = {}
    for number in range(count):
        tag, kind, length, inline = struct.unpack_from(entry, table, number * entry_bytes)
        if tag in _KEPT and kind in _TYPES:
            tags[tag] = _values(file, order, kind, length, inline)
    return tags, struct.unpack_from(order + link, table, count * entry_bytes)[0]


def _values(file: BinaryIO, order: str, kind: int, length: int, inline: bytes) -> npt.NDArray[np.int64] | bytes:
    dtype = np.dtype(order + _TYPES[kind])
    size = length * dtype.itemsize
    if size > _VALUES_MAX:
        raise TiffFormatError(f"a tag of {size} bytes")
    if size <= len(inline):
        data = inline[:size]
    else:
        file.seek(struct.unpack(order + ("Q" if len(inline) == 8 else "I"), inline)[0])
        data = file.read(size)
        if len(data) < size:
            raise TiffFormatError("the file ends inside its directory")
    return data if kind == 7 else np.frombuffer(data, dtype).astype(np.int64)


def _page(tags: _Tags) -> TiffPage | None:
    """The page of these tags; None where it is not tiled."""
    if not {WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS} <= tags.keys():
        return None

    def number(tag: int, default: int) -> int:
        return int(tags[tag][0]) if tag in tags else default

    bits, tables = tags.get(BITS, b"\1"), tags.get(JPEG_TABLES, b"")
    page = TiffPage(
        width=number(WIDTH, 0),
        height=number(HEIGHT, 0),
        tile_width=number(TILE_WIDTH, 0),
        tile_height=number(TILE_HEIGHT, 0),
        offsets=np.asarray(tags[OFFSETS], np.int64),
        counts=np.asarray(tags[COUNTS], np.int64),
        compression=number(COMPRESSION, 1),
        photometric=number(PHOTOMETRIC, -1),
        samples=number(SAMPLES, 1),
        bits=tuple(int(value) for value in bits),
        planar=number(PLANAR, 1),
        predictor=number(PREDICTOR, 1),
        orientation=number(ORIENTATION, 1),
        fill_order=number(FILL_ORDER, 1),
        sample_format=number(SAMPLE_FORMAT, 1),
        jpeg_tables=tables if isinstance(tables, bytes) else bytes(tables.astype(np.uint8)),
    )
    if min(page.width, page.height, page.tile_width, page.tile_height) < 1:
        raise TiffFormatError(f"a page of {page.width}x{page.height} px in tiles {page.tile_width}x{page.tile_height}")
    return page


def page_of(page: Any) -> TiffPage:
    """A tiled page that tifffile has parsed, for what only tifffile understands."""

    def number(name: str, default: int) -> int:
        return int(page.tags[name].value) if name in page.tags else default

    bits = page.bitspersample
    return TiffPage(
        width=int(page.imagewidth),
        height=int(page.imagelength),
        tile_width=int(page.tilewidth),
        tile_height=int(page.tilelength),
        offsets=np.asarray(page.dataoffsets, np.int64),
        counts=np.asarray(page.databytecounts, np.int64),
        compression=int(page.compression),
        photometric=int(page.photometric),
        samples=int(page.samplesperpixel),
        bits=tuple(bits) if isinstance(bits, tuple) else (int(bits),) * int(page.samplesperpixel),
        planar=int(page.planarconfig),
        predictor=int(page.predictor),
        orientation=number("Orientation", 1),
        fill_order=number("FillOrder", 1),
        sample_format=int(page.sampleformat or 1),
        jpeg_tables=page.jpegtables or b"",
        header=page.jpegheader or b"",
    )
