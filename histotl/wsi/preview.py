"""A small picture of a slide with its tissue, its tiles, and a value for each tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.core.units import round_px
from histotl.core.values import TileGrid
from histotl.wsi.mask import Polygon
from histotl.wsi.readers.base import Pixels

# Blue and black of Okabe & Ito (2008), which all colour visions tell from H&E; grid lines are neutral.
_OUTLINE, _GRID = (0, 114, 178), (60, 60, 60)

_SCALE = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]],
    np.float64,
)
"""Dark violet over green to yellow: brightness rises evenly, so it reads in grey and with any colour vision."""

_OPACITY = 0.6


def draw_preview(
    image: Pixels,
    *,
    scale_l0: tuple[float, float],
    polygons: Sequence[Polygon],
    grid: TileGrid | None,
    values: npt.NDArray[np.floating] | None = None,
    by: Literal["rank", "value"] = "rank",
) -> Pixels:
    """Draw outlines, tiles and values over a small picture of the slide.

    Args:
        image: uint8 RGB (h, w, 3), the whole slide; not changed.
        scale_l0: Level-0 pixels per pixel of ``image`` in x and y.
        polygons: Tissue, in level-0 pixels.
        grid: Tiles to draw; None for none.
        values: float (n,), one a tile: tiles are coloured by it instead of outlined; NaN leaves a tile bare. Where
            tiles overlap, the mean of their values is shown.
        by: ``rank`` colours by the share of tiles with a smaller value, so no outlier sets the scale and no hot spot is
            made up; ``value`` takes 0 to 1 as it is.

    Returns:
        uint8 RGB (h, w, 3).

    Raises:
        UsageError: ``values`` without a grid, or of another length.
    """
    if values is not None and (grid is None or len(values) != len(grid)):
        fact = f"{len(values)} values for {0 if grid is None else len(grid)} tiles"
        raise UsageError(fact, hint="give one value for each tile of the grid")
    import cv2  # heavy, and most commands draw no picture

    picture = np.array(image, order="C")
    if grid is not None and values is not None:
        shown = _ranks(values) if by == "rank" else np.clip(values.astype(np.float64), 0.0, 1.0)
        picture = _fill(picture, _boxes(grid, scale_l0), shown)
    elif grid is not None:
        left, top, right, bottom = _boxes(grid, scale_l0).T
        right, bottom = right - 1, bottom - 1
        corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1)
        cv2.polylines(picture, list(corners.reshape(-1, 4, 2).astype(np.int32)), isClosed=True, color=_GRID)
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    lines = [np.floor(ring / scale_l0).astype(np.int32) for ring in rings]
    width = max(1, max(image.shape[:2]) // 500)
    cv2.polylines(picture, lines, isClosed=False, color=_OUTLINE, thickness=width)
    return picture


def shrink_picture(image: Pixels, longest_px: int) -> Pixels:
    """A picture made smaller until its longer side has so many pixels; a smaller one as it is.

    Halved by means of 2 x 2 pixels as often as that goes, then interpolated: a fraction of the time of a filter whose
    width follows the scale, and as good to look at.

    Args:
        image: uint8 RGB (h, w, 3).
        longest_px: Wanted length of the longer side.
    """
    import cv2

    height, width = image.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round_px(width * scale)), max(1, round_px(height * scale))
    while min(image.shape[1] - 2 * size[0], image.shape[0] - 2 * size[1]) >= 0:
        whole = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        image = np.asarray(cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def encode_jpeg(image: Pixels) -> bytes:
    """A picture, uint8 RGB (h, w, 3), as a JPEG file of quality 85 with colours at half resolution."""
    import simplejpeg

    coded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=85, colorsubsampling="420")
    return coded


def _boxes(grid: TileGrid, scale_l0: tuple[float, float]) -> npt.NDArray[np.int64]:
    """Left, top, right, bottom of every tile in picture pixels, at least one pixel a side; int64 (n, 4)."""
    corner = grid.coords_l0 / scale_l0
    opposite = (grid.coords_l0 + grid.footprint_l0) / scale_l0
    near, far = np.floor(corner + 0.5).astype(np.int64), np.floor(opposite + 0.5).astype(np.int64)
    return np.concatenate([near, np.maximum(far, near + 1)], axis=1)


def _ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rank from 0 (smallest) to 1 (largest); equal values share their mean rank, NaN stays."""
    ranks = np.full(len(values), np.nan)
    known = np.isfinite(values)
    if not known.any():
        return ranks
    _, inverse, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    ranks[known] = middle[inverse] / max(known.sum() - 1, 1)
    return ranks


def _fill(picture: Pixels, boxes: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Pixels:
    """Colour tiles: sums of values and of tiles are counted up at the corners of the tiles and then added up once."""
    height, width = picture.shape[:2]
    known = ~np.isnan(values)
    left, top, right, bottom = np.clip(boxes[known], 0, [width, height, width, height]).T
    total, count = np.zeros((height + 1, width + 1)), np.zeros((height + 1, width + 1), np.int64)
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(total, (rows, columns), sign * values[known])
        np.add.at(count, (rows, columns), sign)
    total, count = (table.cumsum(0).cumsum(1)[:-1, :-1] for table in (total, count))
    covered = count > 0
    # Adding up leaves the noise of floating point.
    place = np.clip(np.round(total[covered] / count[covered], 9), 0.0, 1.0) * (len(_SCALE) - 1)
    below = np.minimum(place.astype(np.int64), len(_SCALE) - 2)
    part = (place - below)[:, None]
    colour = _SCALE[below] * (1 - part) + _SCALE[below + 1] * part
    picture[covered] = np.floor((1 - _OPACITY) * picture[covered] + _OPACITY * colour + 0.5).astype(np.uint8)
    return picture
