"""Lamina propria: loose pink fibres with lymphocytes, spindle cells and a few vessels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from histotl.paint.noise import smooth_noise, soft_step
from histotl.paint.nuclei import NucleusBox
from histotl.paint.values import Canvas, Mask, Plane


def paint_stroma(
    canvas: Canvas, tissue: Mask, box: NucleusBox, rng: np.random.Generator, *, cells_per_mm2: float
) -> None:
    """Fill the tissue with stroma.

    Args:
        canvas: Planes, changed in place.
        tissue: Where tissue is, (h, w).
        box: Nuclei to print.
        rng: Source of randomness.
        cells_per_mm2: Stromal nuclei per mm² (about 6000 in a quiet mucosa).
    """
    px = 1 / canvas.mpp
    fibre = _fibres(rng, canvas.shape, px)
    loose = smooth_noise(rng, canvas.shape, 16 * px)
    gaps = soft_step(loose + 0.4 * fibre - 1.35, 0.8)
    solid = (1 - 0.8 * gaps) * tissue
    canvas.second[...] = solid * (0.33 + 0.08 * fibre)
    canvas.first[...] = solid * (0.10 + 0.02 * fibre)
    crowd = smooth_noise(rng, (canvas.shape[0] // 8 + 2, canvas.shape[1] // 8 + 2), 70 * px / 8)
    _scatter(canvas, tissue, crowd, box, rng, cells_per_mm2)
    _vessels(canvas, tissue, rng)


def _fibres(rng: np.random.Generator, shape: tuple[int, int], px: float) -> Plane:
    """Wavy strands: the contour lines of smooth noise, about -1 to 1."""
    hills = smooth_noise(rng, shape, 28 * px)
    hills *= 3.5
    hills += 1.5 * smooth_noise(rng, shape, 6 * px)
    return np.sin(hills, out=hills)


def _scatter(
    canvas: Canvas, tissue: Mask, crowd: Plane, box: NucleusBox, rng: np.random.Generator, per_mm2: float
) -> None:
    h, w = canvas.shape
    n = int(per_mm2 * h * w * (canvas.mpp / 1000) ** 2)
    xy = rng.uniform((0, 0), (w - 1, h - 1), (n, 2))
    col, row = xy.T.astype(np.intp)
    # Clusters: keep a cell more often where the crowd is thick.
    keep = tissue[row, col] & (rng.normal(0, 0.8, n) < crowd[row // 8, col // 8] + 0.35)
    xy = xy[keep]
    angle = rng.uniform(0, np.pi, len(xy))
    spindle = rng.random(len(xy)) < 0.28
    box.print(canvas.first, "lymphocyte", xy[~spindle], angle[~spindle], rng)
    box.print(canvas.first, "spindle", xy[spindle], angle[spindle], rng)


def _vessels(canvas: Canvas, tissue: Mask, rng: np.random.Generator) -> None:
    """Capillaries filled with red cells: small discs dense in eosin."""
    h, w = canvas.shape
    px = 1 / canvas.mpp
    for _ in range(max(1, round(h * w * (canvas.mpp / 1000) ** 2 * 12))):
        centre = rng.uniform((0, 0), (w, h))
        count = int(rng.integers(3, 14))
        for x, y in centre + rng.normal(0, 7 * px, (count, 2)):
            _disc(canvas.second, tissue, x, y, 3.1 * px, rng.uniform(0.7, 0.95))


def _disc(plane: Plane, tissue: Mask, x: float, y: float, radius: float, density: float) -> None:
    reach = int(radius) + 2
    x0, y0 = int(x), int(y)
    if not (reach <= x0 < plane.shape[1] - reach and reach <= y0 < plane.shape[0] - reach and tissue[y0, x0]):
        return
    grid = np.arange(-reach, reach + 1, dtype=np.float32)
    distance: NDArray[np.float32] = np.hypot(grid[:, None] - np.float32(y - y0), grid[None, :] - np.float32(x - x0))
    window = plane[y0 - reach : y0 + reach + 1, x0 - reach : x0 + reach + 1]
    np.maximum(window, soft_step(np.float32(radius) - distance) * np.float32(density), out=window)
