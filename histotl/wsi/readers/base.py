"""The contract of a slide reader.

A reader is a frozen dataclass registered as ``@register("reader", name)``. It says which files it claims, and opens
one into a :class:`SlideBackend`, which knows its geometry and decodes regions. Everything above (pixel size checks,
borders, resampling, tiling) is in ``wsi`` and the same for all readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from histotl.core.values import SlideInfo

Pixels = npt.NDArray[np.uint8]


class TiledLevel(Protocol):
    """The compressed tiles of one level, reached directly: what lets every tile be decoded once.

    A regular grid of tiles, numbered row by row. It belongs to its backend, may be used by several threads at once, and
    is closed with the backend.
    """

    @property
    def tile_size(self) -> tuple[int, int]:
        """(width, height) of a decoded tile in pixels of the level; tiles at the border are whole, with padding."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Tiles that the file has, bool (rows, columns); the pixels of the others only ``read_region`` knows."""

    def fetch(self, tiles: Sequence[int]) -> list[bytes]:
        """Compressed bytes of tiles that are present; tiles that lie near each other in the file share one read.

        Raises:
            SlideReadError: The file ends before, or cannot be read.
        """

    def decode(self, tile: int, data: bytes, out: Pixels | None = None) -> Pixels:
        """Decode one tile, the same pixels as ``read_region`` gives; the interpreter lock is released meanwhile.

        Args:
            tile: Its number.
            data: What :meth:`fetch` gave.
            out: C-contiguous uint8 (tile height, tile width, 3) to decode into; a new array when None.

        Raises:
            SlideReadError: The bytes cannot be decoded. Never returns made-up pixels instead.
        """


@runtime_checkable
class JpegStreams(Protocol):
    """What a tiled level may also be: one whose tiles a decoder of plain JPEG files can decode."""

    def streams(self, data: Sequence[bytes]) -> list[bytearray | None] | None:
        """Complete JPEG files for compressed tiles: tables in them, the colour model told, and of no other size.

        Only YCbCr, since not every decoder heeds the marker that says RGB. Damage that can be seen without decoding
        makes a tile None, so that the strict decoder of the level is the one to judge it.

        Args:
            data: What ``fetch`` gave.

        Returns:
            One for each tile, None where only ``decode`` will do; None in all where that is so for every tile of the
            level.
        """


class BatchDecoder(Protocol):
    """Decodes many JPEG files with one call, such as on a GPU; called by several threads at once."""

    @property
    def name(self) -> str:
        """Such as ``nvjpeg``; stands in the provenance of what was made from its pixels."""

    def decode(self, streams: Sequence[bytearray], outs: Sequence[Pixels]) -> list[bool]:
        """Decode files of one size.

        Args:
            streams: Complete JPEG files of three components, YCbCr.
            outs: C-contiguous uint8 (height, width, 3), all of one size: where the RGB pixels go.

        Returns:
            Which were decoded; the others are decoded again by the level itself, whatever is in their arrays.
        """


class SlideBackend(Protocol):
    """An open slide. Not shared between threads; closed by its owner."""

    @property
    def info(self) -> SlideInfo:
        """Geometry and pixel size; ``mpp_x`` and ``mpp_y`` are NaN and ``mpp_source`` empty when the file has none."""

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        """Decode a rectangle of one level.

        Args:
            x_l0: Left border in level-0 pixels; the rectangle lies inside the level (the caller clips).
            y_l0: Upper border in level-0 pixels.
            level: Index into ``info.levels``.
            width: In pixels of that level.
            height: In pixels of that level.

        Returns:
            uint8 RGB (height, width, 3); transparency is composited on ``info.background``.

        Raises:
            SlideReadError: The region cannot be decoded. Never returns made-up pixels instead.
        """

    def tiled(self, level: int) -> TiledLevel | None:
        """Direct access to the compressed tiles of a level; None where regions are the only way."""

    def decoding(self, level: int) -> str:
        """How a level is decoded, in words for ``info``; for a level that is not tiled, with the reason."""

    def close(self) -> None:
        """Give the file back; calling twice does no harm."""


@runtime_checkable
class ShrinksLevels(Protocol):
    """What a backend may also be: one that shrinks a level tile by tile, and never holds all of its pixels."""

    def level_means(self, level: int, times: int, *, draft: bool = False) -> Pixels | None:
        """Means of squares of pixels of a whole level; None where its tiles do not allow it.

        Args:
            level: Index into ``info.levels``.
            times: Side of the squares. What is left over at the right and lower border is dropped.
            draft: For people to look at: something like the means, where that comes with less decoding, else None.

        Returns:
            uint8 RGB (height // times, width // times, 3).

        Raises:
            SlideReadError: A tile cannot be decoded.
        """


class Reader(Protocol):
    """Opens files of some formats."""

    @property
    def priority(self) -> int:
        """Readers that claim a file are tried from the highest priority down."""

    def claims(self, path: Path) -> bool:
        """Whether the file looks like one of this reader's, judged by name or by a few header bytes."""

    def open(self, path: Path) -> SlideBackend:
        """Open a slide.

        Raises:
            SlideOpenError: Not a file that this reader can read; the message says why.
            NotBrightfieldError: Fluorescence or single-channel.
        """
