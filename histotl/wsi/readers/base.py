"""The contract of a slide reader.

A reader is a frozen dataclass registered as ``@register("reader", name)``. It says which files it claims, and opens
one into a :class:`SlideBackend`, which knows its geometry and decodes regions. Everything above (pixel size checks,
borders, resampling, tiling) is in ``wsi`` and the same for all readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from histotl.core.values import SlideInfo

Pixels = npt.NDArray[np.uint8]


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
