"""JPEG tiles through libjpeg-turbo, with what the TIFF says about them spliced into the stream.

A tile in a TIFF may lack its tables (they stand once in the page) and does not say whether it holds RGB or YCbCr: the
TIFF does. The binding takes neither, so the header of the stream is rewritten: start of image, an Adobe marker (JPEG
ISO/IEC 10918-6 §6.5.3) with the colour model, the shared tables, and the tile's own header without markers that would
contradict it. Tiles of one page nearly always have the same header, so it is rewritten and checked once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from histotl.wsi.readers.base import Pixels

RGB, YCBCR = 2, 6
"""TIFF photometric interpretations."""

_SUBSAMPLING = {
    (1, 1): "4:4:4",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (1, 2): "4:4:0",
    (4, 1): "4:1:1",
}
"""Sampling factors of the first component, the others having 1 x 1, that are decoded here."""

_SOS, _APP0, _APP14, _EOI = 0xDA, 0xE0, 0xEE, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN = (0xC0, 0xC1, 0xC2)
"""Start-of-frame markers of baseline, extended and progressive Huffman coding."""

_MARKER_AT_END = re.compile(rb"\xff[\xd0-\xd9]\Z")
_FILL_MAX = 64
"""Fill bytes that an encoder may leave before the end marker; more are taken for lost pixels."""

_STRAY = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""A marker that has no place among the coded pixels of a baseline stream, such as the one that ends it."""

_HOLE = bytes(512)
"""Zeros that coded pixels hardly have, but a disk block that was never written has."""

_EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


class JpegError(ValueError):
    """A stream that is not what the TIFF says, or damaged; stays inside the readers."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a JPEG stream says of itself.

    Args:
        width: In pixels.
        height: In pixels.
        subsampling: Such as ``4:2:0``.
        length: Bytes up to the entropy-coded data.
        head: The header as it is handed to the decoder.
    """

    width: int
    height: int
    subsampling: str
    length: int
    head: bytes


class JpegCodec:
    """Decodes the JPEG tiles of one page; may be used by several threads at once.

    Args:
        tables: JPEGTables of the page; empty where streams are complete.
        photometric: :data:`RGB` or :data:`YCBCR`.
        size: (width, height) that streams must have.
        factor: 1, or 2, 4, 8 for pixels shrunk so many times by the scaled inverse transform.
        before: Header that the tiles of an NDPI lack: they are stretches between two restart markers.

    Attributes:
        has_streams: Whether tiles are YCbCr in full size, so that :meth:`stream` may give them to other decoders.
    """

    def __init__(
        self, *, tables: bytes, photometric: int, size: tuple[int, int], factor: int = 1, before: bytes = b""
    ) -> None:
        transform = b"\x00" if photometric == RGB else b"\x01"
        shared = tables[2:-2] if tables[-2:] == b"\xff\xd9" else tables[2:]
        self.has_streams = photometric == YCBCR and factor == 1
        self._start = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform + shared
        self._size, self._before = size, before
        self._shape = (-(-size[1] // factor), -(-size[0] // factor), 3)
        self._wanted = (
            {} if factor == 1 else {"min_height": self._shape[0], "min_width": self._shape[1], "min_factor": factor}
        )
        # One object, so that threads see an old or a new one, never half of each.
        self._known: tuple[bytes, bytes] = (b"\0", b"")

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        """Decode a stream.

        Raises:
            JpegError: Not a stream of the right size and kind, truncated, or damaged.
        """
        if self._before:
            # The restart marker that ends the stretch stands where a stream of its own has the end marker.
            data = self._before + (data[:-2] if _MARKER_AT_END.search(data, len(data) - 2) else data) + b"\xff\xd9"
        original, head = self._heads(data)
        stream = b"".join((head, memoryview(data)[len(original) :]))
        pixels = np.empty(self._shape, np.uint8) if out is None else out
        try:
            simplejpeg.decode_jpeg(stream, buffer=pixels, **self._wanted)
        except ValueError as error:
            if not _only_padded(str(error), data):
                raise JpegError(str(error)) from error
            simplejpeg.decode_jpeg(stream, buffer=pixels, strict=False, **self._wanted)
        return pixels

    def stream(self, data: bytes) -> bytearray | None:
        """The tile as a JPEG file for other decoders; see :class:`histotl.wsi.readers.base.JpegStreams`.

        None where the tile is not YCbCr in its full size, where the header is not right, coded pixels have a marker in
        their midst (progressive streams do) or a run of zeros, or the end marker is not where it should be. Damage of
        other kinds, such as a flipped bit, only decoding can find.
        """
        if not self.has_streams:
            return None
        if self._before:
            if not _MARKER_AT_END.search(data, len(data) - 2):
                return None
            data = self._before + data[:-2] + b"\xff\xd9"
        try:
            original, head = self._heads(data)
        except JpegError:
            return None  # decode() says what is wrong with it
        stray = _STRAY.search(data, len(original))
        if stray is None or stray[0] != b"\xff\xd9" or data.find(_HOLE, len(original)) >= 0:
            return None
        end = stray.end()
        if data[end:].strip(b"\0"):  # some formats fill up to a whole number of words
            return None
        return bytearray().join((head, memoryview(data)[len(original) : end]))

    def _heads(self, data: bytes) -> tuple[bytes, bytes]:
        """The header of a stream, and what stands in its place for the decoder; JpegError where it is not right."""
        known = self._known
        if not data.startswith(known[0]):
            header = self.header(data)
            known = self._known = (data[: header.length], header.head)
        return known

    def header(self, data: bytes) -> Header:
        """Check the header of a stream, and rewrite it.

        Raises:
            JpegError: It is damaged, or says another size or kind than the TIFF.
        """
        try:
            header = self._walk(data)
        except (struct.error, IndexError) as error:
            raise JpegError("the JPEG header is cut off") from error
        if (header.width, header.height) != self._size:
            width, height = self._size
            raise JpegError(f"the JPEG is {header.width}x{header.height} px, the tile {width}x{height}")
        return header

    def _walk(self, data: bytes) -> Header:
        """Go from marker to marker up to the entropy-coded data."""
        if data[:2] != b"\xff\xd8":
            raise JpegError(f"not a JPEG stream, it begins with {data[:2].hex() or 'nothing'}")
        position, kept, frame = 2, [self._start], None
        while True:
            start = position
            if data[position] != 0xFF:
                raise JpegError(f"no JPEG marker at byte {position}")
            while data[position] == 0xFF:
                position += 1
            marker = data[position]
            if marker == _EOI:
                raise JpegError("the JPEG has no pixels")
            position += 1 + struct.unpack_from(">H", data, position + 1)[0]
            if marker in _FRAMES:
                frame = _frame(marker, data[start:position])
            if marker not in (_APP0, _APP14):
                kept.append(data[start:position])
            if marker == _SOS:
                break
        if frame is None:
            raise JpegError("the JPEG has no frame header")
        return Header(width=frame[0], height=frame[1], subsampling=frame[2], length=position, head=b"".join(kept))


def jpeg_streams(codec: object, data: Sequence[bytes]) -> list[bytearray | None] | None:
    """Tiles as JPEG files, where a codec is one of JPEG; see :class:`histotl.wsi.readers.base.JpegStreams`."""
    if not isinstance(codec, JpegCodec) or not codec.has_streams:
        return None
    return [codec.stream(item) for item in data]


def _frame(marker: int, segment: bytes) -> tuple[int, int, str]:
    """(width, height, subsampling) of a frame header."""
    precision, height, width, components = struct.unpack_from(">BHHB", segment, 4)
    if marker not in _HUFFMAN:
        raise JpegError(f"JPEG process {marker - 0xC0}, which is not Huffman-coded DCT")
    if precision != 8 or components != 3:
        raise JpegError(f"the JPEG has {components} component(s) of {precision} bits, the TIFF 3 of 8")
    factors = [divmod(segment[11 + 3 * number], 16) for number in range(3)]
    if factors[0] not in _SUBSAMPLING or factors[1:] != [(1, 1), (1, 1)]:
        raise JpegError(f"JPEG sampling factors {factors}")
    return width, height, _SUBSAMPLING[factors[0]]


def _only_padded(message: str, data: bytes) -> bool:
    """Whether the decoder only minds fill bytes between the pixels and the end marker, which some encoders write."""
    found, end = _EXTRA.search(message), data.rfind(b"\xff\xd9")
    if found is None or end < 0 or int(found.group(1)) > _FILL_MAX:
        return False
    return not data[max(0, end - int(found.group(1))) : end].strip(b"\0\xff")
