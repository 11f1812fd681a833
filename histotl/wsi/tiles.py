"""The pixels of a grid's tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from histotl.core.values import TileGrid
from histotl.wsi.readers.base import Pixels
from histotl.wsi.slide import Slide


def read_tiles(slide: Slide, grid: TileGrid, rows: slice | npt.NDArray[np.integer]) -> Pixels:
    """Read some tiles of a grid, in the order asked for.

    Args:
        slide: The slide that the grid was planned for.
        grid: The plan.
        rows: Which of its tiles.

    Returns:
        uint8 RGB (n, tile_px, tile_px, 3).

    Raises:
        SlideReadError: A region cannot be decoded; nothing is put in its place.
    """
    corners = grid.coords_l0[rows]
    side = grid.spec.tile_px
    tiles = np.empty((len(corners), side, side, 3), np.uint8)
    for index, (x, y) in enumerate(corners.tolist()):
        tiles[index] = slide.read(x, y, grid.footprint_l0, side, grid.read_level)
    return tiles
