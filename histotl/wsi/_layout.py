"""Which compressed tiles of a level every tile of a grid needs: pure geometry, all tiles of the grid at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.values import Level
from histotl.wsi._resample import COPY, Windows
from histotl.wsi.readers.base import Pixels, TiledLevel

_LEFT, _TOP, _RIGHT, _BOTTOM, _X0, _Y0, _X1, _Y1, _COLUMN, _ROW, _COLUMN_END, _ROW_END = range(12)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The compressed tiles under the source regions of n tiles of a grid.

    Args:
        table: int64 (n, 12): a region's borders, the part of it that lies in the level, and the rectangle of compressed
            tiles under that part (first column and row, and those after the last).
        uses: int64 (rows, columns): how many regions need each compressed tile; only covered ones count.
        covered: bool (n,): all compressed tiles under the region are in the file.
        alone: int64 (n,): the compressed tile that is this tile of the grid and no part of another one; -1 for none.
        tile_size: (width, height) of a compressed tile.
    """

    table: npt.NDArray[np.int64]
    uses: npt.NDArray[np.int64]
    covered: npt.NDArray[np.bool_]
    alone: npt.NDArray[np.int64]
    tile_size: tuple[int, int]

    @classmethod
    def of(cls, windows: Windows, tiled: TiledLevel, level: Level) -> Layout:
        """The layout of some source regions of a level."""
        tile_size, shape = np.array(tiled.tile_size), np.array(tiled.shape[::-1])
        near = np.clip(windows.first, 0, (level.width, level.height))
        far = np.maximum(np.minimum(windows.last, (level.width, level.height)), near)
        begin, end = near // tile_size, -(-far // tile_size)
        empty = (far <= near).any(axis=1)
        end[empty] = begin[empty]
        covered = (end <= shape).all(axis=1)
        if not tiled.present.all():
            covered[covered] = _sums(~tiled.present, begin[covered], end[covered]) == 0
        uses = _uses(begin[covered], end[covered], tiled.shape)
        exact = covered & ~empty & (windows.mode == COPY) & (near == windows.first).all(axis=1)
        exact &= (far == windows.last).all(axis=1) & (near == begin * tile_size).all(axis=1)
        exact &= (far - near == tile_size).all(axis=1)
        number = begin[:, 1] * tiled.shape[1] + begin[:, 0]
        exact[exact] = uses.ravel()[number[exact]] == 1
        return cls(
            table=np.concatenate([windows.first, windows.last, near, far, begin, end], axis=1),
            uses=uses,
            covered=covered,
            alone=np.where(exact, number, -1),
            tile_size=tiled.tile_size,
        )

    def needed(self, place: list[int]) -> list[int]:
        """Numbers of the compressed tiles under a region, given as its row of the table."""
        columns = self.uses.shape[1]
        first, last = place[_COLUMN], place[_COLUMN_END]
        return [
            tile
            for row in range(place[_ROW], place[_ROW_END])
            for tile in range(row * columns + first, row * columns + last)
        ]

    def paste(
        self, place: list[int], tiles: Mapping[int, Pixels], canvas: Pixels, background: tuple[int, int, int]
    ) -> None:
        """Put a region together.

        Args:
            place: Its row of the table.
            tiles: Decoded tiles by number.
            canvas: uint8 (height, width, 3), written to.
            background: RGB of what lies outside the level.
        """
        left, top, right, bottom, x0, y0, x1, y1, column, row, column_end, row_end = place
        if x0 > left or y0 > top or x1 < right or y1 < bottom:
            fill_around(canvas, (x0 - left, y0 - top, x1 - left, y1 - top), background)
        width, height = self.tile_size
        columns = self.uses.shape[1]
        pieces = []
        for number in range(column, column_end):
            start = number * width
            a, b = max(start, x0), min(start + width, x1)
            pieces.append((number, slice(a - left, b - left), slice(a - start, b - start)))
        for number in range(row, row_end):
            start = number * height
            a, b = max(start, y0), min(start + height, y1)
            onto, rows, base = canvas[a - top : b - top], slice(a - start, b - start), number * columns
            for place_in_row, to, of in pieces:
                onto[:, to] = tiles[base + place_in_row][rows, of]


def fill_around(canvas: Pixels, inner: tuple[int, int, int, int], background: tuple[int, int, int]) -> None:
    """Fill what lies outside a rectangle, given as left, top, right and bottom; all of it if the rectangle is empty."""
    left, top, right, bottom = inner
    if right <= left or bottom <= top:
        left = top = right = bottom = 0
    for strip in (canvas[:top], canvas[bottom:], canvas[top:bottom, :left], canvas[top:bottom, right:]):
        if strip.size:
            # Numpy broadcasts a pixel slowly: one row is made, then copied downwards.
            row = np.empty((strip.shape[1], 3), np.uint8)
            row[:] = background
            strip[:] = row


def _uses(begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How many of the rectangles cover each cell, by the differences at their corners."""
    steps = np.zeros((shape[0] + 1, shape[1] + 1), np.int64)
    for columns, rows, sign in (
        (begin[:, 0], begin[:, 1], 1),
        (end[:, 0], begin[:, 1], -1),
        (begin[:, 0], end[:, 1], -1),
        (end[:, 0], end[:, 1], 1),
    ):
        np.add.at(steps, (rows, columns), sign)
    return steps.cumsum(0).cumsum(1)[:-1, :-1]


def _sums(
    cells: npt.NDArray[np.bool_], begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Cells that are True in each rectangle."""
    table = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
    table[1:, 1:] = cells.cumsum(0).cumsum(1)
    (x0, y0), (x1, y1) = begin.T, end.T
    sums: npt.NDArray[np.int64] = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return sums
