"""Slides that are in memory, or in a NumPy file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from histotl.core.errors import NotBrightfieldError, SlideOpenError
from histotl.core.provenance import file_digest
from histotl.core.registry import register
from histotl.core.units import round_px
from histotl.core.values import Level, SlideInfo
from histotl.wsi.readers._pixels import composite, one_line
from histotl.wsi.readers.base import Pixels, TiledLevel
from histotl.wsi.tiling import level_scale


@register("reader", "array")
@dataclass(frozen=True, kw_only=True)
class ArrayReader:
    """RGB arrays in .npy files, mapped into memory; only when asked for by name, for a .npy may hold anything."""

    priority: int = 0

    def claims(self, path: Path) -> bool:  # noqa: ARG002 - the contract's signature
        """Never by itself: give ``reader="array"``."""
        return False

    def open(self, path: Path) -> ArrayBackend:
        """Open a .npy file; see :class:`histotl.wsi.readers.base.Reader`."""
        try:
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            fact = f"{path.name}: not a NumPy array file: {one_line(error)}"
            raise SlideOpenError(fact, hint="save it with numpy.save") from error
        return ArrayBackend([pixels], path=path, fingerprint=file_digest(path))


class ArrayBackend:
    """Arrays as the levels of a slide.

    Args:
        levels: uint8 (h, w, 3) or (h, w, 4), finest first; each covers the whole slide.
        path: Shown as the slide's file.
        mpp: (x, y) in µm per level-0 pixel; NaN when not known.
        mpp_source: Where the pixel size came from.
        slide_id: Name of the slide; the stem of ``path`` when empty.
        vendor: Shown as the slide's format.
        background: RGB under transparent pixels and beyond the border.
        fingerprint: Of the file, if there is one.

    Raises:
        NotBrightfieldError: The arrays have one channel, or more than four.
        SlideOpenError: Not 8 bits a channel, no pixels, or levels that do not shrink.
    """

    def __init__(
        self,
        levels: Sequence[Pixels],
        *,
        path: Path,
        mpp: tuple[float, float] = (math.nan, math.nan),
        mpp_source: str = "",
        slide_id: str = "",
        vendor: str = "array",
        background: tuple[int, int, int] = (255, 255, 255),
        fingerprint: str = "",
    ) -> None:
        _check(levels, path.name)
        self._levels = tuple(levels)
        height, width = levels[0].shape[:2]
        self._info = SlideInfo(
            path=path,
            slide_id=slide_id or path.stem,
            reader="array",
            vendor=vendor,
            width=width,
            height=height,
            mpp_x=mpp[0],
            mpp_y=mpp[1],
            mpp_source=mpp_source,
            levels=tuple(level_of(width, height, image.shape[1], image.shape[0]) for image in levels),
            bounds_l0=(0, 0, width, height),
            background=background,
            fingerprint=fingerprint,
        )

    @property
    def info(self) -> SlideInfo:
        """Geometry and pixel size."""
        return self._info

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        """Cut a rectangle out of one level; see :class:`histotl.wsi.readers.base.SlideBackend`."""
        scale_x, scale_y = level_scale(self._info, level)
        left, top = round_px(x_l0 / scale_x), round_px(y_l0 / scale_y)
        region = self._levels[level][top : top + height, left : left + width]
        return composite(region, self._info.background) if region.shape[2] == 4 else np.array(region)

    def tiled(self, level: int) -> TiledLevel | None:  # noqa: ARG002 - the contract's form
        """None: there is nothing compressed."""
        return None

    def decoding(self, level: int) -> str:  # noqa: ARG002 - the contract's form
        """Nothing is decoded."""
        return "from memory"

    def close(self) -> None:
        """Nothing to give back."""


def level_of(width_l0: int, height_l0: int, width: int, height: int) -> Level:
    """A level that covers the whole of level 0; its downsample is the mean of both axes."""
    return Level(width=width, height=height, downsample=(width_l0 / width + height_l0 / height) / 2)


def _check(levels: Sequence[Pixels], name: str) -> None:
    for image in levels:
        if image.ndim != 3 or image.shape[2] not in (3, 4):
            fact = f"{name}: not brightfield RGB: array of shape {image.shape}"
            raise NotBrightfieldError(fact, hint="give uint8 RGB of shape (height, width, 3)")
        if image.dtype != np.uint8:
            fact = f"{name}: pixels are {image.dtype}"
            raise SlideOpenError(fact, hint="scale them to 0-255 and give uint8")
        if 0 in image.shape:
            raise SlideOpenError(f"{name}: array of shape {image.shape} has no pixels", hint="give a picture")
    sizes = [image.shape[:2] for image in levels]
    if not sizes or any(b[0] > a[0] or b[1] > a[1] for a, b in pairwise(sizes)):
        raise SlideOpenError(f"{name}: levels of (h, w) {sizes} do not shrink", hint="give the finest level first")
