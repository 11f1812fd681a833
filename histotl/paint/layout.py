"""Where things lie: pieces of tissue on the glass, the lesion in them, the glands in both, and their outlines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from histotl.paint.glands import GLANDS, Gland, GlandStyle
from histotl.paint.noise import enlarge, smooth_noise
from histotl.paint.values import Mask, Plane, Region, Ring, SlideRecipe, Tissue

COARSE_PX: Final = 8
"""Outlines are decided on a grid this many pixels wide, and smoothed when it is enlarged."""

_GLASS_UM = 36.0
"""Glass left along the slide's edges."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Two level sets on the coarse grid: positive inside tissue, and positive inside the lesion."""

    tissue: Plane
    lesion: Plane | None
    shape: tuple[int, int]

    def tissue_mask(self) -> Mask:
        """Tissue at full resolution, (h, w)."""
        return enlarge(self.tissue, self.shape, COARSE_PX) > 0

    def names(self, recipe: SlideRecipe) -> list[tuple[Tissue, Mask]]:
        """Coarse mask of every tissue on the slide, lesion first."""
        inside = self.tissue > 0
        if self.lesion is None or recipe.lesion is None:
            return [(recipe.background, inside)]
        return [(recipe.lesion, inside & (self.lesion > 0)), (recipe.background, inside & (self.lesion <= 0))]


def lay_out(recipe: SlideRecipe, rng: np.random.Generator) -> Layout:
    """Decide the outlines of tissue and lesion."""
    h, w = recipe.shape
    coarse = (math.ceil(h / COARSE_PX) + 2, math.ceil(w / COARSE_PX) + 2)
    tissue = _pieces(recipe, coarse, rng)
    lesion = _lesion(tissue, recipe, rng) if recipe.lesion is not None else None
    return Layout(tissue=tissue, lesion=lesion, shape=recipe.shape)


def _pieces(recipe: SlideRecipe, coarse: tuple[int, int], rng: np.random.Generator) -> Plane:
    """Ragged ellipses side by side."""
    rows, cols = coarse
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    step_um = COARSE_PX * recipe.mpp
    ragged = 0.07 * smooth_noise(rng, coarse, 170 / step_um) + 0.022 * smooth_noise(rng, coarse, 40 / step_um)
    level = np.full(coarse, -1.0, np.float32)
    slot = cols / recipe.fragments
    for i in range(recipe.fragments):
        cx, cy = slot * (i + 0.5 + rng.uniform(-0.04, 0.04)), rows * rng.uniform(0.46, 0.54)
        a, b = slot * rng.uniform(0.38, 0.45), rows * rng.uniform(0.34, 0.40)
        tilt = rng.uniform(-0.15, 0.15)
        u = ((x - cx) + tilt * (y - cy)) / a
        v = ((y - cy) - tilt * (x - cx)) / b
        level = np.maximum(level, 1 - np.sqrt(u * u + v * v) + ragged)
    edge = np.minimum(np.minimum(x, cols - 1 - x), np.minimum(y, rows - 1 - y)) * step_um
    return np.asarray(np.minimum(level, (edge - _GLASS_UM) / 100), dtype=np.float32)


def _lesion(tissue: Plane, recipe: SlideRecipe, rng: np.random.Generator) -> Plane:
    """A wavy front across the slide, set so that the lesion takes the wanted share of the tissue."""
    rows, cols = tissue.shape
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    front = (x / cols - 0.5) * math.cos(angle) + (y / rows - 0.5) * math.sin(angle)
    front += 0.12 * smooth_noise(rng, tissue.shape, 200 / (COARSE_PX * recipe.mpp))
    inside = front[tissue > 0]
    threshold = np.quantile(inside, 1 - recipe.lesion_fraction) if len(inside) else 0.0
    return np.asarray(front - threshold, dtype=np.float32)


def place_glands(layout: Layout, recipe: SlideRecipe, rng: np.random.Generator) -> list[Gland]:
    """Scatter glands of the right kind over every area, none over another, none over the border."""
    occupied = np.zeros(layout.tissue.shape, bool)
    grain = smooth_noise(rng, layout.tissue.shape, 300 / (COARSE_PX * recipe.mpp))
    base = rng.uniform(0, np.pi)
    glands = []
    for name, area in layout.names(recipe):
        style = GLANDS.get(name)
        if style is None:
            continue
        # Room for the wall on either side: a gland must not hang over the edge of its area.
        for x, y, squeeze in _candidates(style, area, recipe.mpp, rng):
            row, col = int(y / COARSE_PX), int(x / COARSE_PX)
            if not area[row, col] or occupied[row, col]:
                continue
            angle = base + 0.7 * float(grain[row, col]) + rng.normal(0, 0.25)
            gland = Gland(
                tissue=name,
                x=x,
                y=y,
                angle=angle,
                half_length=squeeze * rng.uniform(*style.half_length_um) / recipe.mpp,
                radius=(0.6 + 0.4 * squeeze) * rng.uniform(*style.radius_um) / recipe.mpp,
                bend=style.bend * rng.uniform(-1, 1),
            )
            if _fits(gland, style, area, occupied, recipe.mpp):
                _occupy(gland, occupied)
                glands.append(gland)
    return glands


def _candidates(
    style: GlandStyle, area: Mask, mpp: float, rng: np.random.Generator
) -> Iterator[tuple[float, float, float]]:
    """Places to try, (x, y, size factor): a jittered hexagonal grid, then darts of shrinking size for the gaps."""
    rows, cols = np.nonzero(area)
    if not len(rows):
        return
    pitch = 2 * (sum(style.radius_um) / 2 + style.gap_um / 2 + sum(style.half_length_um) / 5) / mpp
    x0, x1 = cols.min() * COARSE_PX, cols.max() * COARSE_PX
    y0, y1 = rows.min() * COARSE_PX, rows.max() * COARSE_PX
    for j, y in enumerate(np.arange(y0, y1, pitch * 0.87)):
        for x in np.arange(x0 + (j % 2) * pitch / 2, x1, pitch):
            jx, jy = rng.normal(0, 0.07 * pitch, 2)
            yield float(np.clip(x + jx, x0, x1)), float(np.clip(y + jy, y0, y1)), 1.0
    darts = int(80 * len(rows) * COARSE_PX**2 / pitch**2)
    for i in range(darts):
        k = int(rng.integers(len(rows)))
        yield (cols[k] + rng.random()) * COARSE_PX, (rows[k] + rng.random()) * COARSE_PX, 1.0 - 0.75 * i / darts


_PROBE_TURN: Final = np.tile(np.linspace(0, 1, 28, endpoint=False), 2)
_PROBE_DEPTH: Final = np.repeat([0.55, 1.0], 28)


def _fits(gland: Gland, style: GlandStyle, area: Mask, occupied: Mask, mpp: float) -> bool:
    xy, _ = gland.place(_PROBE_TURN, _PROBE_DEPTH * (gland.radius + style.gap_um / mpp))
    col = np.clip((xy[:, 0] / COARSE_PX).astype(np.intp), 0, area.shape[1] - 1)
    row = np.clip((xy[:, 1] / COARSE_PX).astype(np.intp), 0, area.shape[0] - 1)
    return bool(area[row, col].mean() > 0.97) and not occupied[row, col].any()


def _occupy(gland: Gland, occupied: Mask) -> None:
    reach_x, reach_y = gland.reach_px
    x0, x1 = max(0, int((gland.x - reach_x) / COARSE_PX)), int((gland.x + reach_x) / COARSE_PX) + 2
    y0, y1 = max(0, int((gland.y - reach_y) / COARSE_PX)), int((gland.y + reach_y) / COARSE_PX) + 2
    window = occupied[y0:y1, x0:x1]
    y, x = np.ogrid[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]]
    half = np.float32(COARSE_PX / 2)
    distance, _ = gland.local(x.astype(np.float32) * COARSE_PX + half, y.astype(np.float32) * COARSE_PX + half)
    window |= distance < gland.radius


def tissue_regions(layout: Layout, recipe: SlideRecipe) -> list[Region]:
    """Outlines of every tissue, one region a connected piece."""
    return [
        region for name, area in layout.names(recipe) for region in outline(area, COARSE_PX, name=name, artefact=False)
    ]


def outline(area: Mask, scale_px: float, *, name: str, artefact: bool) -> list[Region]:
    """Outline the connected pieces of a coarse mask.

    Args:
        area: Mask whose pixel is `scale_px` level-0 pixels wide.
        scale_px: Level-0 pixels per mask pixel.
        name: Class of the regions.
        artefact: True for artefacts, False for tissues.

    Returns:
        One region a piece, the largest first; specks of under 12 mask pixels are left out.
    """
    labels, count = ndimage.label(area)
    sizes = ndimage.sum_labels(area, labels, np.arange(1, count + 1)) if count else np.zeros(0)
    regions = []
    for i in np.argsort(-sizes, kind="stable"):
        if sizes[i] < 12:
            continue
        piece = np.pad(labels == i + 1, 1).astype(np.float32)
        contours: list[NDArray[np.float64]] = measure.find_contours(piece, 0.5)  # type: ignore[no-untyped-call]
        # The outer outline spans more than any hole in it.
        contours.sort(key=lambda contour: float(np.ptp(contour, axis=0).prod()), reverse=True)
        rings = [_ring(contour, scale_px) for contour in contours]
        regions.append(Region(name=name, kind="artefact" if artefact else "tissue", rings=tuple(rings)))
    return regions


def _ring(contour: NDArray[np.float64], scale_px: float) -> Ring:
    """(row, col) pixel centres of a mask padded by 1, as (x, y) level-0 points."""
    points: NDArray[np.float64] = measure.approximate_polygon(contour, 0.4)  # type: ignore[no-untyped-call]
    return tuple((round(float(c - 0.5) * scale_px, 1), round(float(r - 0.5) * scale_px, 1)) for r, c in points)
