"""Borders of the connected areas of a mask, traced once for all of them, as arrays.

Tissue hangs together over corners (8-connected); its complement, and so a hole, does not (4-connected). Border
following: Suzuki and Abe (1985), as OpenCV has it: the steps of a border go from pixel centre to pixel centre of the
tissue, for holes too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]
Ring = npt.NDArray[np.float64]

_TOLERANCE_PX = 0.35
"""How far a simplified ring may leave the line midway between pixel centres, in pixels.

Two places of such lines that are no neighbours along them lie at least 1/√2 px apart. Below half of that, no ring can
cross itself or another.
"""

_STEP = np.array([[1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1], [1, 1]], np.int32)
"""The eight neighbours as (x, y), from the right one against the clock on the screen; even ones lie over an edge."""

_CODE = np.zeros(9, np.int32)
_CODE[_STEP[:, 1] * 3 + _STEP[:, 0] + 4] = np.arange(8)

_AROUND = 10
"""Ways to turn around a pixel: by 1 to 8 neighbours, and by 9 around a single one."""


def _edges_passed() -> tuple[Ints, Ints]:
    """Which neighbours over an edge lie between the one that a border comes from and the one that it goes to.

    Returns:
        int32 (80,): how many, for ``neighbour * 10 + turn``; int32 (80, 4): their numbers, in order.
    """
    count, passed = np.zeros(8 * _AROUND, np.int32), np.zeros((8 * _AROUND, 4), np.int32)
    for back in range(8):
        for turn in range(1, _AROUND):
            edges = [(back + step) % 8 for step in range(1, turn) if (back + step) % 2 == 0]
            count[back * _AROUND + turn] = len(edges)
            passed[back * _AROUND + turn, : len(edges)] = edges
    return count, passed


_EDGES, _PASSED = _edges_passed()


@dataclass(frozen=True, kw_only=True, eq=False)
class Borders:
    """All borders of a mask, ``n`` rings with ``k`` points in all.

    Args:
        points: int32 (k, 2): x and y, ring after ring.
        start: int64 (n,): first point of each ring, which is any of its points.
        parent: int64 (n,): the ring next outside; -1 for none. Outer borders and holes take turns.
        depth: int64 (n,): number of rings outside; even for outer borders, odd for holes.
        area_px: int64 (n,): pixels inside, the border's own for outer borders and none of its own for holes.
    """

    points: Ints
    start: Ints
    parent: Ints
    depth: Ints
    area_px: Ints

    def __len__(self) -> int:
        return len(self.start)

    def top(self) -> Ints:
        """int64 (n, 2): the left one of the topmost points of each ring."""
        if not len(self):
            return self.points
        x, y = self.points.astype(np.int64).T
        stride = int(x.max()) + 1
        first = np.minimum.reduceat(y * stride + x, self.start)
        return np.stack([first % stride, first // stride], axis=1)

    def boxes(self) -> Ints:
        """int32 (n, 4): left, top, right and bottom of each ring; the last two are beyond it."""
        if not len(self):
            return np.zeros((0, 4), np.int32)
        low, high = (how.reduceat(self.points, self.start) for how in (np.minimum, np.maximum))
        return np.concatenate([low, high + 1], axis=1)


def trace(mask: Mask, *, corners_only: bool) -> Borders:
    """Borders of a mask.

    Args:
        mask: bool (h, w).
        corners_only: Leave out the points of straight and of diagonal runs but the first and the last.
    """
    import cv2  # heavy, and most commands look at no mask

    how = cv2.CHAIN_APPROX_SIMPLE if corners_only else cv2.CHAIN_APPROX_NONE
    found, tree = cv2.findContours(np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_TREE, how)
    if not found:
        none = np.zeros(0, np.int64)
        return Borders(points=np.zeros((0, 2), np.int32), start=none, parent=none, depth=none, area_px=none)
    points = np.asarray(np.concatenate(found), np.int32).reshape(-1, 2)
    lengths = np.array([len(ring) for ring in found])
    start = np.cumsum(lengths) - lengths
    parent = np.reshape(tree, (-1, 4))[:, 3].astype(np.int64)
    depth = _depth(parent)
    return Borders(points=points, start=start, parent=parent, depth=depth, area_px=_areas(points, start, depth))


def _depth(parent: Ints) -> Ints:
    depth, above = np.zeros(len(parent), np.int64), parent
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parent[above], -1)
    return depth


def _onwards(values: Ints, start: Ints) -> Ints:
    """The value of the point after each one, around its ring."""
    after = np.empty_like(values)
    after[:-1] = values[1:]
    after[np.append(start[1:], len(values)) - 1] = values[start]
    return after


def _areas(points: Ints, start: Ints, depth: Ints) -> Ints:
    """Pixels inside each ring, by Pick's theorem: their centres are the points of a lattice, and so are the corners."""
    x, y = np.ascontiguousarray(points.T, np.int64)
    right, down = _onwards(x, start) - x, _onwards(y, start) - y
    doubled = np.abs(np.add.reduceat(x * down - right * y, start))
    steps = np.add.reduceat(np.maximum(np.abs(right), np.abs(down)), start)
    inside: Ints = (doubled + np.where(depth % 2 == 0, steps, -steps)) // 2 + 1
    return inside


def midway_rings(borders: Borders) -> list[npt.NDArray[np.int32]]:
    """Rings on the line midway between the centres of tissue and background, simplified.

    The line goes through the middle of every pixel edge between the two, so it passes between tissue that touches over
    a corner and closes around single pixels.

    Args:
        borders: With all of their points.

    Returns:
        One int32 (m, 2) for each border, m at least 3: twice the x and y of pixel centres, not closed.
    """
    import cv2

    if not len(borders):
        return []
    points, start = borders.points, borders.start
    last = np.append(start[1:], len(points)) - 1
    x, y = np.ascontiguousarray(points.T)
    ahead = _CODE[(_onwards(y, start) - y) * 3 + (_onwards(x, start) - x) + 4]
    back = np.empty_like(ahead)
    back[1:] = ahead[:-1]
    back[start] = ahead[last]
    back ^= 4  # the way back is the opposite one
    # Around each pixel, from the one that the border comes from to the one that it goes to, lies background.
    turn = (ahead - back - 1) % 8 + 1
    single = start[start == last]
    back[single], turn[single] = 7, 9
    way = back * _AROUND + turn
    edges = _EDGES[way]
    upto = np.cumsum(edges)
    which = np.repeat(np.arange(len(points)), edges)
    number = np.arange(len(which)) - (upto - edges)[which]
    middles = 2 * points[which] + _STEP[_PASSED[way[which], number]]
    rings = np.split(middles, upto[last[:-1]])
    simple = [cv2.approxPolyDP(ring[:, None], 2 * _TOLERANCE_PX, closed=True)[:, 0] for ring in rings]
    return [np.asarray(ring, np.int32) for ring in simple]
