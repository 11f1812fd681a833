"""The contract of a slide reader.

A reader is a frozen dataclass registered as ``@register("reader", name)``. It says which files it claims, and opens
one into a :class:`SlideBackend`, which knows its geometry and decodes regions. Everything above (pixel size checks,
borders, resampling, tiling) is in ``wsi`` and the same for all readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

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
