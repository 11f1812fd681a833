"""Tiles of a TIFF page as a :class:`histotl.wsi.readers.base.TiledLevel`, and regions put together from tiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from histotl.core.errors import SlideReadError, UsageError
from histotl.wsi.readers._files import FilePerThread, read_ranges
from histotl.wsi.readers._ifd import TiffPage
from histotl.wsi.readers._jpeg import jpeg_streams
from histotl.wsi.readers._pixels import one_line
from histotl.wsi.readers.base import Pixels, TiledLevel

CURE_DAMAGED = "the file is damaged: copy or export it again"

_TOGETHER = 1024
"""Tiles whose compressed bytes are held at a time while a region is put together."""

_KEPT_BYTES = 12 * 2**20
"""Decoded tiles that a level remembers, 64 of 256 x 256 pixels: rectangles read side by side share them."""


class Codec(Protocol):
    """Decodes the tiles of one page; may be used by several threads at once."""

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        """RGB of one tile; into ``out`` where given. Raises what :data:`CODEC_ERRORS` names."""


CODEC_ERRORS = (ValueError, TypeError, RuntimeError, EOFError)
"""What codecs raise on damaged bytes; the errors of imagecodecs are RuntimeErrors or ValueErrors."""


class TiffTiles:
    """The tiles of one page; see :class:`histotl.wsi.readers.base.TiledLevel`.

    Args:
        page: Where they lie.
        file: The file that they lie in.
        codec: Decodes one.
        factor: How many times the codec shrinks them.
    """

    def __init__(self, page: TiffPage, file: FilePerThread, codec: Codec, factor: int = 1) -> None:
        self._page, self._file, self._codec, self._factor = page, file, codec, factor
        self._shape = page.shape
        self._tile_shape = (-(-page.tile_height // factor), -(-page.tile_width // factor), 3)
        self._present = (page.counts > 0).reshape(self._shape)
        self._present.flags.writeable = False

    @property
    def tile_size(self) -> tuple[int, int]:
        """(width, height) of a decoded tile."""
        return self._tile_shape[1], self._tile_shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return self._shape

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Tiles that the file has, bool (rows, columns)."""
        return self._present

    def fetch(self, tiles: Sequence[int]) -> list[bytes]:
        """Compressed bytes of tiles; see :class:`histotl.wsi.readers.base.TiledLevel`."""
        wanted = np.asarray(tiles, np.intp)
        if not wanted.size:
            return []
        if not self._present.ravel()[wanted].all():
            raise UsageError(
                f"{self._file.path.name}: a tile is asked for that the file has not", hint="mind `present`"
            )
        starts, sizes = self._page.offsets[wanted].tolist(), self._page.counts[wanted].tolist()
        found, short = read_ranges(self._file.read, starts, sizes)
        if short:
            raise self._error(int(wanted[short[0]]), "the file ends inside it")
        return found

    def decode(self, tile: int, data: bytes, out: Pixels | None = None) -> Pixels:
        """Decode one tile; see :class:`histotl.wsi.readers.base.TiledLevel`."""
        if out is not None and (out.shape != self._tile_shape or not out.flags.c_contiguous):
            raise UsageError(
                f"out is {out.shape}, a tile {self._tile_shape}", hint="give a contiguous array of its size"
            )
        try:
            return self._codec.decode(data, out)
        except CODEC_ERRORS as error:
            raise self._error(tile, one_line(error)) from error

    def streams(self, data: Sequence[bytes]) -> list[bytearray | None] | None:
        """Tiles as JPEG files; see :class:`histotl.wsi.readers.base.JpegStreams`."""
        return jpeg_streams(self._codec, data)

    def _error(self, tile: int, why: str) -> SlideReadError:
        row, column = divmod(tile, self._shape[1])
        page = self._page
        fact = f"{self._file.path.name}: tile {tile} (column {column}, row {row}, x={column * page.tile_width}"
        fact += f" y={row * page.tile_height} of {page.width}x{page.height} px) cannot be decoded: {why}"
        return SlideReadError(fact, hint=CURE_DAMAGED)


class TileRegions:
    """Rectangles put together from the tiles of one level; not to be shared by threads.

    Each tile is decoded once for a rectangle, and small rectangles share tiles with those read just before.

    Args:
        level: The tiles.
        background: RGB of tiles that the file has not; None when such rectangles are somebody else's.
    """

    def __init__(self, level: TiledLevel, background: tuple[int, int, int] | None = None) -> None:
        self.level, self._background = level, background
        across, down = level.tile_size
        self._kept: OrderedDict[int, Pixels] = OrderedDict()
        self._keep = max(1, _KEPT_BYTES // (across * down * 3))

    def read(self, left: int, top: int, width: int, height: int) -> Pixels | None:
        """A rectangle inside the level.

        Returns:
            uint8 RGB (height, width, 3); None where a tile of it is not in the file and there is no background.

        Raises:
            SlideReadError: A tile cannot be decoded.
        """
        level = self.level
        across, down = level.tile_size
        rows, columns = _span(top, height, down), _span(left, width, across)
        present = level.present[rows.start : rows.stop, columns.start : columns.stop]
        if self._background is None and not present.all():
            return None
        region = np.empty((height, width, 3), np.uint8)
        if self._background is not None and not present.all():
            region[0] = self._background
            region[1:] = region[0]  # whole rows: a colour at a time is a hundred times slower
        places = [(rows.start + int(row), columns.start + int(column)) for row, column in np.argwhere(present)]
        small = len(places) <= self._keep
        scratch = None if small else np.empty((down, across, 3), np.uint8)
        for start in range(0, len(places), _TOGETHER):
            together = places[start : start + _TOGETHER]
            numbers = [row * level.shape[1] + column for row, column in together]
            compressed = self._fetch(numbers)
            for (row, column), number in zip(together, numbers, strict=True):
                x, y = column * across - left, row * down - top
                if not small and x == 0 and width == across and 0 <= y <= height - down:
                    level.decode(number, compressed[number], region[y : y + down])
                    continue
                tile = self._tile(number, compressed, scratch)
                into = region[max(y, 0) : y + down, max(x, 0) : x + across]
                into[:] = tile[max(-y, 0) :, max(-x, 0) :][: into.shape[0], : into.shape[1]]
        return region

    def means(self, width: int, height: int, times: int) -> Pixels | None:
        """Means of squares of the pixels of the whole level.

        Args:
            width: Of the level, whose last tiles may reach farther.
            height: The same.
            times: Side of the squares.

        Returns:
            uint8 RGB (height // times, width // times, 3); None where a tile is not in the file, or squares would lie
            across tiles.

        Raises:
            SlideReadError: A tile cannot be decoded.
        """
        import cv2

        across, down = self.level.tile_size
        if across % times or down % times or not self.level.present.all():
            return None
        shrunk = np.empty((height // times, width // times, 3), np.uint8)
        scratch, count = np.empty((down, across, 3), np.uint8), self.level.present.size
        for start in range(0, count, _TOGETHER):
            numbers = list(range(start, min(start + _TOGETHER, count)))
            compressed = self._fetch(numbers)
            for number in numbers:
                row, column = divmod(number, self.level.shape[1])
                y, x = row * down // times, column * across // times
                into = shrunk[y : y + down // times, x : x + across // times]
                if into.size:
                    tile = self._tile(number, compressed, scratch)[: into.shape[0] * times, : into.shape[1] * times]
                    cv2.resize(tile, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)
        return shrunk

    def _fetch(self, numbers: list[int]) -> dict[int, bytes]:
        """Compressed bytes of the tiles that are not kept decoded."""
        needed = [number for number in numbers if number not in self._kept]
        for number in self._kept.keys() & set(numbers):
            self._kept.move_to_end(number)  # so that new ones push out others
        return dict(zip(needed, self.level.fetch(needed), strict=True))

    def _tile(self, number: int, compressed: dict[int, bytes], scratch: Pixels | None) -> Pixels:
        if number not in compressed:
            return self._kept[number]
        tile = self.level.decode(number, compressed[number], scratch)
        if scratch is None:
            self._kept[number] = tile
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        return tile


def _span(start: int, length: int, side: int) -> range:
    """Tiles that an interval touches."""
    return range(start // side, (start + length - 1) // side + 1)
