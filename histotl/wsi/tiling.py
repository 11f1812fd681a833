"""Pure geometry: from a wish in micrometres to tiles in level-0 pixels. No file is opened here.

Frames: level-0 pixels (``_l0``), pixels of a pyramid level (``_level``), pixels of a tile (``_px``). A level covers the
whole of level 0, so its pixel ``i`` lies over ``[i * scale, (i + 1) * scale)`` with the scale of :func:`level_scale`,
which is rarely a whole number; nothing here rounds a scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UpsamplingError, UsageError
from histotl.core.units import round_px
from histotl.core.values import SlideInfo, TileGrid, TileSpec

UPSAMPLING_TOLERANCE = 0.05
"""A slide may be this much coarser than the tiles and still count as the same resolution.

Scanners of one nominal magnification differ by more than that (0.46 to 0.51 µm/px is all "20x"); the field of view
stays exact all the same, because tiles are resampled.
"""

LEVEL_TOLERANCE = 0.01
"""A level may be this much coarser than wanted: 4.0002 serves as 4, resampling takes up the rest."""

_STRIP_ROWS = 255
"""Rows of a mask that are added up in bytes."""

_EDGE_PX = 1e-3
"""Overhang of a tile that counts as none: the noise of floating point, far below a pixel."""


def level_scale(info: SlideInfo, level: int) -> tuple[float, float]:
    """Level-0 pixels per pixel of a level, in x and in y.

    A reader that knows no better derives one downsample from the sizes of the levels, as the mean of both axes; the
    sizes then say more than the mean. A downsample of another value was read from the file and is kept, because such
    formats pad their levels.

    Args:
        info: The slide.
        level: Index into ``info.levels``.
    """
    found = info.levels[level]
    scale_x, scale_y = info.width / found.width, info.height / found.height
    if math.isclose(found.downsample, (scale_x + scale_y) / 2, rel_tol=1e-6):
        return scale_x, scale_y
    return found.downsample, found.downsample


def best_level(info: SlideInfo, scale_l0: float) -> int:
    """The coarsest level that is not coarser than wanted, so that reading shrinks and never enlarges.

    Args:
        info: The slide.
        scale_l0: Level-0 pixels per wanted pixel.

    Returns:
        Index into ``info.levels``; 0 when all levels are coarser than wanted.
    """
    scales = [max(level_scale(info, level)) for level in range(len(info.levels))]
    fine_enough = [level for level, scale in enumerate(scales) if scale <= scale_l0 * (1 + LEVEL_TOLERANCE)]
    return max(fine_enough, key=lambda level: scales[level], default=0)


def plan_tiles(
    info: SlideInfo,
    spec: TileSpec,
    mask: npt.NDArray[np.bool_] | None = None,
    scale_l0: tuple[float, float] = (1.0, 1.0),
) -> TileGrid:
    """Lay a grid over the scanned area and keep the tiles that hold enough tissue.

    The grid starts at the corner of ``info.bounds_l0``. Column ``i`` begins at ``round_px(x + i * stride)``, so
    rounding never adds up over the slide. With ``edge="drop"`` every tile lies inside the scanned area; with ``"pad"``
    the fewest tiles that cover it are laid, the last ones over its right and lower border.

    Args:
        info: The slide, with its pixel size.
        spec: The tiles wished for.
        mask: bool (h, w), True on tissue; None keeps every tile, with a tissue fraction of 1.
        scale_l0: Level-0 pixels per mask pixel in x and y.

    Returns:
        The plan, row-major (y outer, x inner). It may be empty.

    Raises:
        UpsamplingError: The slide is coarser than ``spec.mpp`` by more than 5 % and upsampling is not allowed.
        UsageError: The mask is not two-dimensional.
    """
    refuse_upsampling(info, spec)
    footprint = (spec.tile_um / info.mpp_x, spec.tile_um / info.mpp_y)
    stride = (spec.stride_um / info.mpp_x, spec.stride_um / info.mpp_y)
    x, y, width, height = info.bounds_l0
    pad = spec.edge == "pad"
    columns = _corners(x, width, footprint[0], stride[0], pad=pad)
    rows = _corners(y, height, footprint[1], stride[1], pad=pad)
    fraction = np.ones((len(rows), len(columns)), np.float32)
    if mask is not None:
        fraction = tissue_fractions(mask, scale_l0, columns, rows, footprint)
    # A tile that is all tissue must pass min_tissue=1 whatever the last bit of the sum says.
    row, column = np.nonzero(fraction >= spec.min_tissue - 1e-6)
    coords = np.stack([columns[column], rows[row]], axis=-1)
    return TileGrid(
        spec=spec,
        coords_l0=coords,
        footprint_l0=footprint,
        read_level=best_level(info, min(footprint) / spec.tile_px),
        tissue_fraction=fraction[row, column],
    )


def refuse_upsampling(info: SlideInfo, spec: TileSpec) -> None:
    """Raise if tiles of a slide would have to be enlarged.

    Args:
        info: The slide, with its pixel size.
        spec: The tiles wished for.

    Raises:
        UpsamplingError: The slide is coarser than ``spec.mpp`` by more than 5 % and upsampling is not allowed.
    """
    if spec.allow_upsampling or info.mpp <= spec.mpp * (1 + UPSAMPLING_TOLERANCE):
        return
    fact = f"{info.slide_id}: the slide has {info.mpp:.4g} µm/px, tiles of {spec.mpp:g} µm/px would be upsampled"
    raise UpsamplingError(fact, hint=f"ask for its own scale with --mpp {_round_up(info.mpp):g}, or --allow-upsampling")


def tissue_fractions(
    mask: npt.NDArray[np.bool_],
    scale_l0: tuple[float, float],
    columns_l0: npt.NDArray[np.int64],
    rows_l0: npt.NDArray[np.int64],
    footprint_l0: tuple[float, float],
) -> npt.NDArray[np.float32]:
    """Share of tissue in every tile of a grid: the exact integral of the mask over the tile, by a summed-area table.

    Mask pixels that a tile cuts count with the part that lies inside it. What lies outside the mask is no tissue.

    Args:
        mask: bool (h, w).
        scale_l0: Level-0 pixels per mask pixel in x and y.
        columns_l0: int64 (c,): left borders of the tiles.
        rows_l0: int64 (r,): upper borders.
        footprint_l0: (width, height) of a tile in level-0 pixels.

    Returns:
        float32 (r, c), 0 to 1.

    Raises:
        UsageError: The mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise UsageError(f"tissue mask has shape {mask.shape}", hint="give one of shape (height, width)")
    left, top = columns_l0 / scale_l0[0], rows_l0 / scale_l0[1]
    width, height = footprint_l0[0] / scale_l0[0], footprint_l0[1] / scale_l0[1]
    across = _Ends.of(left, left + width, mask.shape[1])
    down = _Ends.of(top, top + height, mask.shape[0])
    corners = _summed_area(mask, down.needed, across.needed)
    sums = across.differences(down.differences(corners).T).T
    return np.clip(sums / (width * height), 0.0, 1.0).astype(np.float32)


def _summed_area(
    mask: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Pixels of a mask above each of some rows and left of each of some columns: float64 (rows, columns).

    The table of the whole mask would be four times its size; only the rows wanted are made.
    """
    import cv2  # heavy, and most users of this geometry have no mask

    # Rows between two of those wanted are added up first; in a byte, so at most 255 at a time.
    edges = np.unique(np.concatenate([rows, np.arange(0, mask.shape[0], _STRIP_ROWS)]))
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    strips = np.zeros((len(edges), mask.shape[1]), np.uint8)
    for index, (top, bottom) in enumerate(pairwise(edges.tolist())):
        np.add.reduce(pixels[top:bottom], axis=0, dtype=np.uint8, out=strips[index])
    table = cv2.integral(strips, sdepth=cv2.CV_64F)
    return np.asarray(table[np.ix_(np.searchsorted(edges, rows), columns)], np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ends:
    """Where intervals begin and end in a table, at fractional positions; beyond its ends the first or the last row.

    Args:
        needed: The rows of the table next to these positions.
        below: int64 (2, n): the needed rows before the beginnings and the ends.
        above: Those after them.
        part: float64 (2, n, 1): how far each position lies between both, 0 to 1.
    """

    needed: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    part: npt.NDArray[np.float64]

    @classmethod
    def of(cls, begin: npt.NDArray[np.float64], end: npt.NDArray[np.float64], last: int) -> _Ends:
        position = np.clip(np.stack([begin, end]), 0, last)
        below = position.astype(np.int64)
        both = np.stack([below, np.minimum(below + (position > below), last)])
        needed, place = np.unique(both, return_inverse=True)
        low, high = place.reshape(both.shape)
        return cls(needed=needed, below=low, above=high, part=(position - below)[..., None])

    def differences(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The table at the ends minus the table at the beginnings, from its needed rows."""
        at = rows[self.below] * (1 - self.part) + rows[self.above] * self.part
        difference: npt.NDArray[np.float64] = at[1] - at[0]
        return difference


def _corners(start: int, length: int, side: float, stride: float, *, pad: bool) -> npt.NDArray[np.int64]:
    """Where tiles begin along one axis, in level-0 pixels."""
    steps = (length - side) / stride
    if pad:
        # The fewest tiles of which the last one ends at or beyond the border.
        count = max(0, math.ceil(steps - _EDGE_PX / stride)) + 1
        count += round_px(start + (count - 1) * stride) + side < start + length - _EDGE_PX  # rounded to the left
        return _rounded(start, stride, count)
    corners = _rounded(start, stride, max(0, math.floor(steps + _EDGE_PX / stride) + 1))
    return corners[corners + side <= start + length + _EDGE_PX]


def _rounded(start: int, stride: float, count: int) -> npt.NDArray[np.int64]:
    # Strides below a pixel, which only upsampling to the extreme has, would repeat corners.
    return np.unique(np.array([round_px(start + index * stride) for index in range(count)], np.int64))


def _round_up(mpp: float) -> float:
    """Two significant digits, rounded up: the pixel size to suggest."""
    unit = 10.0 ** (math.floor(math.log10(mpp)) - 1)
    return math.ceil(mpp / unit - 1e-9) * unit
