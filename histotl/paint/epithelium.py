"""Paint one gland: its columns of cells, their mucin and nuclei, the lumen inside and the cleft around."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histotl.paint.glands import GLANDS, Gland, GlandStyle
from histotl.paint.noise import ring_noise, soft_step
from histotl.paint.nuclei import NucleusBox
from histotl.paint.values import Canvas, Plane

_RING = 2048
"""Points at which outlines and cell columns are tabulated."""

_WALL_UM = 26.0
"""Thickness of the wall for which `GlandStyle.layers` is meant."""


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """Tables of one gland along its outline: radii in pixels, column number, and goblet shape per column."""

    outer: Plane
    lumen: Plane
    column: Plane
    goblet: NDArray[np.bool_]
    centre: Plane
    half_height: Plane
    half_width: Plane


def paint_gland(canvas: Canvas, gland: Gland, box: NucleusBox, rng: np.random.Generator) -> None:
    """Paint one gland over what is there, except over glands painted before it."""
    style = GLANDS[gland.tissue]
    cells = _make_cells(gland, style, canvas.mpp, rng)
    h, w = canvas.shape
    reach_x, reach_y = gland.reach_px
    x0, x1 = max(0, int(gland.x - reach_x)), min(w, int(gland.x + reach_x))
    y0, y1 = max(0, int(gland.y - reach_y)), min(h, int(gland.y + reach_y))
    window = (slice(y0, y1), slice(x0, x1))
    y, x = np.ogrid[y0:y1, x0:x1]
    distance, turn = gland.local(x.astype(np.float32), y.astype(np.float32))
    entry = (turn * np.float32(_RING)).astype(np.int32)
    outer = cells.outer[entry]
    cover = soft_step(outer - distance)
    cover[canvas.taken[window]] = 0
    _retract(canvas, window, distance - outer, rng)
    first, second = _epithelium(cells, style, distance, entry, outer, canvas.mpp)
    for plane, paint in ((canvas.first, first), (canvas.second, second)):
        view = plane[window]
        view += cover * (paint - view)
    own = cover > 0.5
    canvas.taken[window] |= own
    beneath = canvas.first[window].copy()
    _paint_nuclei(canvas, gland, style, cells, box, own, (x0, y0), rng)
    # Nuclei stay inside the basement membrane.
    np.copyto(canvas.first[window], beneath, where=~own)


def _make_cells(gland: Gland, style: GlandStyle, mpp: float, rng: np.random.Generator) -> _Cells:
    outer = gland.radius * (1 + style.rough * np.tanh(ring_noise(rng, _RING, 5)))
    lumen = gland.radius * rng.uniform(*style.lumen) * (1 + 0.28 * ring_noise(rng, _RING, 7))
    # A tube's lumen narrows towards its two ends.
    if gland.half_length > 0.2 * gland.radius:
        lumen *= 1 - 0.35 * np.cos(np.linspace(0, 2 * np.pi, _RING, endpoint=False)) ** 2
    if style.teeth:
        lumen = lumen + gland.radius * style.tooth * _saw(rng, int(rng.integers(*style.teeth)))
    lumen = np.clip(lumen, 1.0, outer - 9.0 / mpp)
    n = max(6, round(gland.outline_px * 0.8 * mpp / style.cell_um))
    # Uneven cell widths: the columns' borders are a warped even grid.
    column = np.linspace(0, n, _RING, endpoint=False) + 0.25 * ring_noise(rng, _RING, max(3, n // 2))
    share = style.goblet * rng.uniform(0.75, 1.2)
    return _Cells(
        outer=outer.astype(np.float32),
        lumen=lumen.astype(np.float32),
        column=(column % n).astype(np.float32),
        goblet=rng.random(n + 1) < share,
        centre=(style.goblet_at[0] + rng.normal(0, 0.05, n + 1)).astype(np.float32),
        half_height=(style.goblet_at[1] * rng.uniform(0.75, 1.1, n + 1)).astype(np.float32),
        half_width=rng.uniform(0.36, 0.52, n + 1).astype(np.float32),
    )


def _saw(rng: np.random.Generator, n: int) -> Plane:
    """Teeth of uneven width and depth around a ring, 0 to 1: the star-shaped lumen of serrated lesions."""
    at = np.linspace(0, n, _RING, endpoint=False) + 0.35 * ring_noise(rng, _RING, 3)
    tooth = np.abs(2 * (at % 1.0) - 1.0) ** 1.3
    depth = rng.uniform(0.35, 1.0, n)[np.floor(at).astype(np.intp) % n]
    # Smooth the jump of depth between neighbours, it would show as a straight cut.
    kernel = np.ones(25) / 25
    return np.convolve(np.tile(tooth * depth, 3), kernel, mode="same")[_RING : 2 * _RING].astype(np.float32)


def _retract(canvas: Canvas, window: tuple[slice, slice], beyond: Plane, rng: np.random.Generator) -> None:
    """Pale cleft between gland and stroma, as the tissue shrinks in fixation."""
    cleft = np.clip(1 - beyond * np.float32(canvas.mpp / rng.uniform(2.0, 5.0)), 0, 1)
    cleft[canvas.taken[window]] = 0
    cleft *= np.float32(rng.uniform(0.1, 0.75))
    keep = 1 - cleft
    canvas.first[window] *= keep
    canvas.second[window] *= keep


def _epithelium(
    cells: _Cells, style: GlandStyle, distance: Plane, entry: NDArray[np.int32], outer: Plane, mpp: float
) -> tuple[Plane, Plane]:
    """Densities of the two dyes in the wall (without nuclei) and in the lumen."""
    lumen = cells.lumen[entry]
    depth = (distance - lumen) / (outer - lumen)
    at = cells.column[entry]
    cell = at.astype(np.int32)
    across = at - cell - np.float32(0.5)
    first = np.float32(style.cytoplasm[0]) * (0.75 + 0.5 * np.clip(depth, 0, 1))
    second = np.full_like(first, style.cytoplasm[1])
    border = np.clip((np.abs(across) - np.float32(0.40)) * 10, 0, 1)
    first += 0.09 * border
    second += 0.07 * border
    radius = np.sqrt(
        np.square(across / cells.half_width[cell]) + np.square((depth - cells.centre[cell]) / cells.half_height[cell])
    )
    mucin = soft_step((1 - radius) * np.float32(0.5 * style.cell_um / mpp), 2.0) * cells.goblet[cell]
    first += mucin * (0.09 - first)
    second += mucin * (0.05 - second)
    # Brush border at the lumen and basement membrane outside.
    second += 0.16 * np.clip(1 - np.abs(distance - lumen - 1.0) * np.float32(mpp), 0, 1)
    second += 0.14 * np.clip(1 - np.abs(distance - outer) * np.float32(mpp / 1.2), 0, 1)
    wall = soft_step(distance - lumen)
    return (first * wall + 0.012).astype(np.float32, copy=False), (second * wall + 0.012).astype(np.float32, copy=False)


def _paint_nuclei(
    canvas: Canvas,
    gland: Gland,
    style: GlandStyle,
    cells: _Cells,
    box: NucleusBox,
    own: NDArray[np.bool_],
    corner: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    n = len(cells.goblet) - 1
    wall = cells.outer - cells.lumen
    # Pseudostratified nuclei fill the wall: more of them where it is thick.
    crowd = np.cumsum(wall if style.radial else np.ones_like(wall), dtype=np.float64)
    thick = float(wall.mean()) * canvas.mpp / _WALL_UM if style.radial else 1.0
    count = max(4, round(n * style.layers * thick))
    even = (np.arange(count) + rng.uniform(-0.35, 0.35, count)) / count % 1.0
    turn = np.interp(even * crowd[-1], crowd, np.linspace(0, 1, _RING, endpoint=False))
    entry = (turn * _RING).astype(np.intp) % _RING
    depth = rng.uniform(*style.nucleus_at, count)
    xy, outward = gland.place(turn, cells.lumen[entry] + depth * wall[entry])
    angle = outward + rng.normal(0, 0.22, count) + (0.0 if style.radial else math.pi / 2)
    col = np.clip(xy[:, 0].astype(np.intp) - corner[0], 0, own.shape[1] - 1)
    row = np.clip(xy[:, 1].astype(np.intp) - corner[1], 0, own.shape[0] - 1)
    mine = own[row, col]
    box.print(canvas.first, style.nucleus, xy[mine], angle[mine], rng)
