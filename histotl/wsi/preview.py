"""A small picture of a slide with its tissue, its tiles, and a value for each tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from histotl.core.errors import UsageError
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
    picture = image.copy()
    if grid is not None and values is not None:
        shown = _ranks(values) if by == "rank" else np.clip(values.astype(np.float64), 0.0, 1.0)
        picture = _fill(picture, _boxes(grid, scale_l0), shown)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    if grid is not None and values is None:
        for box in _boxes(grid, scale_l0).tolist():
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=_GRID)
    width = max(1, round(max(image.shape[:2]) / 500))
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            draw.line([tuple(point) for point in (ring / scale_l0).tolist()], fill=_OUTLINE, width=width)
    return np.array(canvas)


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
    total, count = np.zeros(picture.shape[:2]), np.zeros(picture.shape[:2])
    for (left, top, right, bottom), value in zip(boxes.tolist(), values.tolist(), strict=True):
        if not np.isnan(value):
            window = (slice(max(top, 0), bottom), slice(max(left, 0), right))
            total[window] += value
            count[window] += 1
    covered = count > 0
    place = total[covered] / count[covered] * (len(_SCALE) - 1)
    below = np.minimum(place.astype(np.int64), len(_SCALE) - 2)
    part = (place - below)[:, None]
    colour = _SCALE[below] * (1 - part) + _SCALE[below + 1] * part
    picture[covered] = np.floor((1 - _OPACITY) * picture[covered] + _OPACITY * colour + 0.5).astype(np.uint8)
    return picture
