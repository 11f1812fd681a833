"""What a DICOM whole-slide file says about its frames: how they are coded, where they lie in the level and in the file.

Attributes of the VL Whole Slide Microscopy Image (DICOM PS3.3 A.32.8), positions of frames from the per-frame
functional groups (C.8.12.6.1), bytes of frames from the offset tables or from the item headers (PS3.5 A.4).
Everything that is unusual is a ValueError, so that such a file is left to OpenSlide.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histotl.wsi._dicom import (
    FIRST_ELEMENT,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    SERIES,
    TRANSFER_SYNTAX,
    UNDEFINED,
    Element,
    ElementReader,
    text_of,
)

Table = npt.NDArray[np.int64]

NATIVE = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_LEVEL_FLAVOR = "VOLUME"
_CLASS, _IMAGE_TYPE, _INSTANCE = 0x00020002, 0x00080008, 0x00080018
_CONCATENATION, _ORGANIZATION, _PHOTOMETRIC = 0x00209161, 0x00209311, 0x00280004
_FRAMES, _ROWS, _COLUMNS = 0x00280008, 0x00280010, 0x00280011
_TOTAL_COLUMNS, _TOTAL_ROWS, _FOCAL_PLANES = 0x00480006, 0x00480007, 0x00480303
_PER_FRAME, _PLANE_POSITION, _COLUMN_POSITION, _ROW_POSITION = 0x52009230, 0x0048021A, 0x0048021E, 0x0048021F
_EXTENDED_OFFSETS, _PIXELS = 0x7FE00001, 0x7FE00010

_FIXED = {0x00280002: 3, 0x00280006: 0, 0x00280100: 8, 0x00280101: 8, 0x00280102: 7, 0x00280103: 0}
"""Samples per pixel, planar configuration, bits allocated, stored and high, signedness: RGB of 8 bits, interleaved."""

_WANTED = {
    *(_CLASS, TRANSFER_SYNTAX, _IMAGE_TYPE, _INSTANCE, SERIES, _CONCATENATION, _ORGANIZATION, _PHOTOMETRIC),
    *(_FRAMES, _ROWS, _COLUMNS, _TOTAL_COLUMNS, _TOTAL_ROWS, _FOCAL_PLANES),
    *_FIXED,
}
_LONGEST_VALUE, _LONGEST_ITEM = 1 << 16, 1 << 20
"""Bytes of an attribute that is wanted, and of the functional groups of a frame; both have some hundred at most."""

_DEEPEST = 16
"""Sequences inside each other; the standard needs three."""

_MOST_LAYOUTS = 64
"""Ways to build up the item of a frame that are remembered: texts in it have various lengths."""

_SIGNED = struct.Struct("<i")
_NUMBER_BYTES = {b"US": 2, b"UL": 4, b"SL": 4}


@dataclass(frozen=True, kw_only=True)
class DicomImage:
    """One file of a series.

    Args:
        path: The file.
        instance: SOP instance UID.
        syntax: Transfer syntax UID.
        photometric: Photometric interpretation.
        concatenated: Whether the level is spread over several files.
        organization: Dimension organization type; empty when not given.
        size: (width, height) of the level in pixels.
        tile_size: (width, height) of a frame in pixels.
        places: Left and upper pixel of every frame in the level, (frames, 2); None when the file does not say.
        starts: First byte of every frame: of its first item when encapsulated, else of its pixels.
        spans: Bytes of every frame, with the headers of its items.
    """

    path: Path
    instance: str
    syntax: str
    photometric: str
    concatenated: bool
    organization: str
    size: tuple[int, int]
    tile_size: tuple[int, int]
    places: Table | None
    starts: Table
    spans: Table


def read_image(path: Path, series: str = "") -> tuple[str, DicomImage | None]:
    """Series of a whole-slide file and, for a file of that series that is a level, the rest.

    Args:
        path: Any file.
        series: The series wanted; any when empty.

    Raises:
        ValueError: Not a file of this kind, or an unusual one.
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        header = _Header(ElementReader(file))
        found = header.read_series()
        if series and found != series:
            return found, None
        return found, header.read_rest(path)


class _Header:
    """The data set of a file, read from front to back as far as it is needed."""

    def __init__(self, reader: ElementReader) -> None:
        self._reader, self._position, self._last = reader, FIRST_ELEMENT, 0
        self._values: dict[int, tuple[bytes, bytes]] = {}
        self._places: Table | None = None
        self._offsets: Element | None = None

    def read_series(self) -> str:
        if not self._reader.is_dicom():
            raise ValueError("not a DICOM file")
        self._read_until(SERIES)
        return self._text(SERIES)

    def read_rest(self, path: Path) -> DicomImage | None:
        """The level, or None when the file is none (label, overview, thumbnail)."""
        flavor = [*self._text(_IMAGE_TYPE).split("\\"), "", "", ""][2].strip()
        if self._text(_CLASS) != _WHOLE_SLIDE or flavor != _LEVEL_FLAVOR:
            return None
        pixels = self._read_until(_PIXELS)
        for tag, value in _FIXED.items():
            if self._number(tag) != value:
                raise ValueError(f"attribute {tag:08x} is {self._number(tag)}, not {value}")
        if _FOCAL_PLANES in self._values and self._number(_FOCAL_PLANES) != 1:
            raise ValueError(f"{self._number(_FOCAL_PLANES)} focal planes")
        tile_size = self._number(_COLUMNS), self._number(_ROWS)
        frames = self._number(_FRAMES) if _FRAMES in self._values else 1
        syntax = self._text(TRANSFER_SYNTAX)
        if syntax == NATIVE:
            starts, spans = _native_frames(self._reader, pixels, frames, 3 * tile_size[0] * tile_size[1])
        else:
            starts, spans = _encapsulated_frames(self._reader, pixels, self._offsets, frames)
        return DicomImage(
            path=path,
            instance=self._text(_INSTANCE),
            syntax=syntax,
            photometric=self._text(_PHOTOMETRIC),
            concatenated=_CONCATENATION in self._values,
            organization=self._text(_ORGANIZATION) if _ORGANIZATION in self._values else "",
            size=(self._number(_TOTAL_COLUMNS), self._number(_TOTAL_ROWS)),
            tile_size=tile_size,
            places=self._places,
            starts=starts,
            spans=spans,
        )

    def _read_until(self, last: int) -> Element:
        """Keep the attributes that are wanted, up to this one."""
        while True:
            element = self._reader.element(self._position)
            if element.tag <= self._last or element.tag > last:
                raise ValueError(f"attribute {element.tag:08x} where {last:08x} was to come")
            self._last = element.tag
            self._position = self._keep(element)
            if element.tag == last:
                return element

    def _keep(self, element: Element) -> int:
        """Take what is wanted of an element; where the next one begins."""
        if element.tag == _PIXELS:
            return element.start
        if element.tag == _PER_FRAME:
            self._places, end = _read_places(self._reader, element)
            return end
        if element.length == UNDEFINED and element.vr != b"SQ":
            raise ValueError(f"attribute {element.tag:08x} ({element.vr!r}) has no length")
        if element.tag in _WANTED:
            if element.length > _LONGEST_VALUE:
                raise ValueError(f"attribute {element.tag:08x} has {element.length} bytes")
            self._values[element.tag] = element.vr, self._reader.take(element.start, element.length)
        if element.tag == _EXTENDED_OFFSETS:
            self._offsets = element
        return self._reader.after(element)

    def _text(self, tag: int) -> str:
        if tag not in self._values:
            raise ValueError(f"attribute {tag:08x} is missing")
        return text_of(self._values[tag][1]).strip()

    def _number(self, tag: int) -> int:
        text = self._text(tag)
        vr, value = self._values[tag]
        if vr == b"IS":
            return int(text)
        if len(value) != _NUMBER_BYTES.get(vr, 0):
            raise ValueError(f"attribute {tag:08x} is no single number")
        return int.from_bytes(value, "little")


def _read_places(reader: ElementReader, sequence: Element) -> tuple[Table | None, int]:
    """(positions of the frames as column and row from 0, where the sequence ends); no positions when none is given."""
    places: list[tuple[int, int] | None] = []
    layouts: list[_Layout] = []
    position = sequence.start
    end = None if sequence.length == UNDEFINED else position + sequence.length
    while end is None or position < end:
        layout = next((layout for layout in layouts if layout.fits(reader, position)), None)
        if layout is None:
            item = reader.element(position)
            if item.tag == SEQUENCE_END and end is None:
                position = item.start
                break
            layout = _Layout(reader, item)
            if len(layouts) < _MOST_LAYOUTS:
                layouts.append(layout)
        places.append(layout.place(reader, position))
        position += layout.length
    if end is not None and position != end:
        raise ValueError("the items of frames do not fill their sequence")
    given = [place for place in places if place is not None]
    if given and len(given) != len(places):
        raise ValueError(f"{len(given)} of {len(places)} frames have a position")
    return (np.array(given, np.int64) - 1 if given else None), position


class _Layout:
    """How the item of one frame is built up: where its headers stand, and where the position of the frame.

    A slide has as many items as frames, and nearly all are built alike. An item that has the same headers at the same
    places is walked in the same way, so a comparison does instead of a walk.

    Args:
        reader: Of the file.
        item: Header of the first item that is built in this way.
    """

    def __init__(self, reader: ElementReader, item: Element) -> None:
        if item.tag != ITEM:
            raise ValueError(f"element {item.tag:08x} among the items of frames")
        base = item.start - 8
        self._headers: list[tuple[int, int]] = [(base, item.start)]
        found: list[tuple[int, int]] = []
        self.length = self._walk(reader, item, found, 0) - base
        if self.length > _LONGEST_ITEM or base + self.length > reader.size:
            raise ValueError(f"{self.length} bytes about one frame")
        self._at = {tag: start - base for tag, start in found}
        if found and (len(found) != 2 or len(self._at) != 2):
            raise ValueError(f"{len(found)} numbers as the position of a frame")
        parts, position = [], base
        for start, stop in self._headers:
            parts += [b".{%d}" % (start - position), re.escape(reader.take(start, stop - start))]
            position = stop
        self._pattern = re.compile(b"".join(parts), re.DOTALL)

    def fits(self, reader: ElementReader, position: int) -> bool:
        """Whether the item that begins here has the same headers."""
        return position + self.length <= reader.size and bool(self._pattern.match(reader.take(position, self.length)))

    def place(self, reader: ElementReader, position: int) -> tuple[int, int] | None:
        """Column and row, from 1, in the item that begins here; None where this layout has none."""
        if not self._at:
            return None
        item = reader.take(position, self.length)
        column, row = self._at[_COLUMN_POSITION], self._at[_ROW_POSITION]
        return _SIGNED.unpack_from(item, column)[0], _SIGNED.unpack_from(item, row)[0]

    def _walk(self, reader: ElementReader, parent: Element, found: list[tuple[int, int]], depth: int) -> int:
        """Collect headers and positions inside an item or a sequence; where that ends."""
        if depth > _DEEPEST:
            raise ValueError(f"sequences nested more than {_DEEPEST} deep")
        position = parent.start
        end = None if parent.length == UNDEFINED else position + parent.length
        while end is None or position < end:
            element = reader.element(position)
            self._headers.append((position, element.start))
            tag, vr, length, position = element
            if end is None and tag in (ITEM_END, SEQUENCE_END):
                return position
            if length == UNDEFINED or tag in (ITEM, _PLANE_POSITION):
                position = self._walk(reader, element, found, depth + 1)
                continue
            if tag in (_COLUMN_POSITION, _ROW_POSITION):
                if vr != b"SL" or length != 4:
                    raise ValueError(f"a position of {length} bytes ({vr!r})")
                found.append((tag, position))
            position += length
        if position != end:
            raise ValueError("an element reaches beyond the item that it is in")
        return position


def _native_frames(reader: ElementReader, pixels: Element, frames: int, frame_bytes: int) -> tuple[Table, Table]:
    """(first byte, bytes) of uncompressed frames."""
    if frames < 1 or frame_bytes < 1 or pixels.length not in (frames * frame_bytes, frames * frame_bytes + 1):
        raise ValueError(f"{pixels.length} bytes of pixels for {frames} frames of {frame_bytes}")
    if pixels.start + frames * frame_bytes > reader.size:
        raise ValueError("the file ends inside the pixels")
    return pixels.start + frame_bytes * np.arange(frames), np.full(frames, frame_bytes)


def _encapsulated_frames(
    reader: ElementReader, pixels: Element, extended: Element | None, frames: int
) -> tuple[Table, Table]:
    """(first byte of the first item, bytes with the headers of items) of compressed frames."""
    if pixels.length != UNDEFINED:
        raise ValueError("compressed pixels with a length")
    if frames < 1 or 8 * frames > reader.size:
        raise ValueError(f"{frames} frames in {reader.size} bytes")
    basic = reader.element(pixels.start)
    if basic.tag != ITEM or basic.length not in (0, 4 * frames):
        raise ValueError(f"an offset table of {basic.length} bytes for {frames} frames")
    first = basic.start + basic.length
    if extended is not None:
        if basic.length or extended.length != 8 * frames:
            raise ValueError(f"an extended offset table of {extended.length} bytes for {frames} frames")
        offsets = np.frombuffer(reader.take(extended.start, extended.length), "<u8")
    elif basic.length:
        offsets = np.frombuffer(reader.take(basic.start, basic.length), "<u4")
    else:
        return _walk_frames(reader, first, frames)
    starts = first + offsets.astype(np.int64)
    if starts[0] != first or (np.diff(starts) < 8).any() or starts[-1] >= reader.size:
        raise ValueError("the offset table is not in order")
    end = _end_of_items(reader, int(starts[-1]))
    return starts, np.diff(starts, append=end)


def _walk_frames(reader: ElementReader, first: int, frames: int) -> tuple[Table, Table]:
    """Every frame in an item of its own, found by their headers."""
    edges = np.empty(frames + 1, np.int64)
    edges[0] = position = first
    for number in range(frames):
        position = _after_item(reader, position)
        edges[number + 1] = position
    if _end_of_items(reader, position) != position:
        raise ValueError(f"more than {frames} items of pixels")
    return edges[:-1], np.diff(edges)


def _end_of_items(reader: ElementReader, position: int) -> int:
    """Where the mark behind the last item stands."""
    while reader.peek(position, 4) != b"\xfe\xff\xdd\xe0":
        position = _after_item(reader, position)
    return position


def _after_item(reader: ElementReader, position: int) -> int:
    """Where an item of pixels ends, read from its header alone."""
    head = reader.peek(position, 8)
    length = int.from_bytes(head[4:], "little")
    if head[:4] != b"\xfe\xff\x00\xe0" or position + 8 + length > reader.size:
        raise ValueError(f"no item of pixels at byte {position}, or the file ends inside it")
    return position + 8 + length
