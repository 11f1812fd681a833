"""Exact sub-pixel resampling: where the source pixels of a tile lie, and the tile made of them.

Shrinking is cubic convolution (Keys 1981, a = -0.5) widened by the scale, as Pillow computes it. Torch has the same
filter for 8-bit pixels some eight times faster, but only for boxes that begin where its input begins. So the input is
begun a few output pixels earlier, at a place that is a whole source pixel, and those output pixels are cut off. Where
there is no such place, Pillow does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from histotl.core.values import SlideInfo
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tiling import level_scale

COPY: Final = 0
"""The region is the tile."""

ALIGNED: Final = 1
"""The region begins a whole number of output pixels before the tile: torch."""

ANYWHERE: Final = 2
"""The tile lies anywhere in the region: Pillow."""

_SAME_PX = 0.02
"""Output pixels that a tile may be shifted by (source pixels when enlarging); nothing that can be measured in it."""

_HALO_MAX = 0.4
"""Longest part of a region that is cut off, in sides of a tile: twice the work, and still less than Pillow needs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Source regions of n tiles of one size.

    Args:
        box: float64 (n, 2): x and y of the tiles' corners in source pixels.
        scale: Source pixels per output pixel in x and in y.
        out_px: (width, height) of a tile.
        mode: int64 (n,): COPY, ALIGNED or ANYWHERE.
        first: int64 (n, 2): left and upper border of the regions.
        last: int64 (n, 2): right and lower border, exclusive.
        halo: int64 (n, 2): output pixels between region and tile in x and y; for ALIGNED.
    """

    box: npt.NDArray[np.float64]
    scale: tuple[float, float]
    out_px: tuple[int, int]
    mode: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    halo: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.mode)

    def kinds(self) -> npt.NDArray[np.int64]:
        """int64 (n,): COPY, or a number that only such tiles share as can be resampled with one call."""
        aligned = 1 + self.halo[:, 0] * (self.halo[:, 1].max(initial=0) + 1) + self.halo[:, 1]
        alone = -1 - np.arange(len(self))
        return np.where(self.mode == COPY, COPY, np.where(self.mode == ALIGNED, aligned, alone))


class Workspace:
    """Memory to resample in, used again and again; for one thread at a time."""

    def __init__(self) -> None:
        self._source = np.empty(0, np.uint8)
        self._shrunk = np.empty(0, np.uint8)

    def regions(self, count: int, height: int, width: int) -> Pixels:
        """Room for the source pixels of some tiles, uint8 (count, height, width, 3); what was there before is lost."""
        size = count * height * width * 3
        if self._source.size < size:
            self._source = np.empty(size, np.uint8)
        return self._source[:size].reshape(count, height, width, 3)

    def render(self, windows: Windows, rows: Sequence[int], regions: Pixels, out: Sequence[Pixels]) -> None:
        """Tiles from their regions.

        Args:
            windows: Of the grid.
            rows: Which tiles; all of one mode and halo, so their regions are of one size.
            regions: uint8 (n, h, w, 3): the pixels from ``first`` to ``last`` of each.
            out: uint8 (height, width, 3) each, written to.
        """
        mode = windows.mode[rows[0]]
        if mode == ALIGNED:
            tiles = self._aligned(windows, windows.halo[rows[0]].tolist(), regions)
            for tile, into in zip(tiles, out, strict=True):
                into[:] = tile
            return
        for row, region, into in zip(rows, regions, out, strict=True):
            into[:] = region if mode == COPY else _anywhere(windows, row, region)

    def _aligned(self, windows: Windows, halo: Sequence[int], regions: Pixels) -> Pixels:
        import torch  # not needed for slides that are read at their own scale, nor by the command line's help

        width, height = windows.out_px[0] + halo[0], windows.out_px[1] + halo[1]
        size = len(regions) * height * width * 3
        if self._shrunk.size < size:
            self._shrunk = np.empty(size, np.uint8)
        shrunk = self._shrunk[:size].reshape(len(regions), height, width, 3)
        with torch.inference_mode():
            # Torch's kernel is fast on the strides of a batch of channels-last pictures, and only on those.
            torch.ops.aten._upsample_bicubic2d_aa.out(
                torch.from_numpy(regions).permute(0, 3, 1, 2),
                [height, width],
                align_corners=False,
                scales_h=1 / windows.scale[1],
                scales_w=1 / windows.scale[0],
                out=torch.from_numpy(shrunk).permute(0, 3, 1, 2),
            )
        return shrunk[:, halo[1] :, halo[0] :]


def windows_l0(
    info: SlideInfo,
    corners_l0: npt.NDArray[np.float64],
    size_l0: tuple[float, float],
    out_px: tuple[int, int],
    level: int,
) -> Windows:
    """Where the pixels of some tiles lie in a level.

    Args:
        info: The slide.
        corners_l0: float64 (n, 2): x and y in level-0 pixels; need not be whole.
        size_l0: (width, height) of all of them in level-0 pixels.
        out_px: (width, height) of the tiles.
        level: Index into ``info.levels``.
    """
    scale = level_scale(info, level)
    return place(corners_l0 / scale, (size_l0[0] / scale[0], size_l0[1] / scale[1]), out_px)


def place(corners: npt.NDArray[np.float64], size: tuple[float, float], out_px: tuple[int, int]) -> Windows:
    """Where the source pixels of some tiles lie.

    Args:
        corners: float64 (n, 2): x and y in source pixels; need not be whole.
        size: (width, height) of all of them in source pixels.
        out_px: (width, height) of the tiles.
    """
    scale = (size[0] / out_px[0], size[1] / out_px[1])
    axes = [_Axis.of(corners[:, axis], size[axis], out_px[axis]) for axis in (0, 1)]
    copied = axes[0].same & axes[1].same
    aligned = (axes[0].halo > 0) & (axes[1].halo > 0)
    mode = np.where(copied, COPY, np.where(aligned, ALIGNED, ANYWHERE))
    ends = [axis.ends(mode) for axis in axes]
    return Windows(
        box=corners,
        scale=scale,
        out_px=out_px,
        mode=mode,
        first=np.stack([ends[0][0], ends[1][0]], axis=1),
        last=np.stack([ends[0][1], ends[1][1]], axis=1),
        halo=np.stack([axes[0].halo, axes[1].halo], axis=1),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Axis:
    """One axis of the tiles.

    Args:
        start: float64 (n,): where the tiles begin.
        size: Their length in source pixels.
        out_px: Their length in output pixels.
        same: bool (n,): source pixels and output pixels are the same.
        halo: int64 (n,): output pixels from a whole source pixel to the tile; 0 where there is no such place.
    """

    start: npt.NDArray[np.float64]
    size: float
    out_px: int
    same: npt.NDArray[np.bool_]
    halo: npt.NDArray[np.int64]

    @classmethod
    def of(cls, start: npt.NDArray[np.float64], size: float, out_px: int) -> _Axis:
        near, far = np.floor(start + 0.5), np.floor(start + size + 0.5)
        still = (np.abs(start - near) <= _SAME_PX) & (np.abs(start + size - far) <= _SAME_PX)
        places, back = np.unique(start, return_inverse=True)  # tiles of a grid share their rows and columns
        scale = size / out_px
        least = math.ceil(2 * max(1.0, scale) / scale - 0.5)  # the filter of the first kept pixel lies in the region
        tried = np.arange(least, max(2, math.floor(_HALO_MAX * out_px)) + 1)
        begin = places[:, None] - tried * scale
        fits = np.abs(begin - np.floor(begin + 0.5)) <= _SAME_PX * max(1.0, scale)
        halo = np.where(fits.any(axis=1), tried[fits.argmax(axis=1)], 0) if len(tried) else np.zeros(len(places), int)
        return cls(start=start, size=size, out_px=out_px, same=still & (far - near == out_px), halo=halo[back])

    def ends(self, mode: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First source pixel of every region and the one after its last."""
        scale = self.size / self.out_px
        # The filter reaches two output pixels beyond the border: neighbours of a tile take part, so tiles fit together.
        reach = math.ceil(2 * max(1.0, scale)) + 1
        begin = np.where(mode == COPY, np.floor(self.start + 0.5), np.floor(self.start) - reach)
        begin = np.where(mode == ALIGNED, np.floor(self.start - self.halo * scale + 0.5), begin)
        end = np.where(mode == COPY, begin + self.out_px, np.ceil(self.start + self.size) + reach)
        # The last output pixel's centre lies half a pixel before the end, so its filter ends there plus 1.5 of them.
        length = np.ceil((self.halo + self.out_px - 0.5) * scale + 2 * max(1.0, scale) + 0.5)
        length += length == self.halo + self.out_px  # torch takes equal sizes for equal pixels
        end = np.where(mode == ALIGNED, begin + length, end)
        return begin.astype(np.int64), end.astype(np.int64)


def _anywhere(windows: Windows, row: int, region: Pixels) -> Pixels:
    x, y = (windows.box[row] - windows.first[row]).tolist()
    (width, height), (across, down) = windows.out_px, windows.scale
    inner = (x, y, x + width * across, y + height * down)
    return np.asarray(Image.fromarray(region).resize((width, height), Image.Resampling.BICUBIC, box=inner))
