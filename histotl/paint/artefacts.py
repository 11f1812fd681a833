"""What goes wrong on real slides: a pen mark, a fold, an area out of focus, an air bubble."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histotl.paint.noise import smooth_noise, soft_step
from histotl.paint.values import Canvas, Mask, Plane

_INKS: Final = ((0.95, 0.55, 0.10), (0.75, 0.15, 0.60), (0.80, 0.85, 0.85))
"""Decadic absorbance of blue, green and black felt pen in R, G, B."""


def fold(canvas: Canvas, tissue: Mask, rng: np.random.Generator) -> Mask:
    """Lay the tissue double along a crease: densities of the tissue beside it are added. Returns where, (h, w)."""
    distance = _crease(tissue, rng, canvas.mpp)
    width = rng.uniform(22, 38) / canvas.mpp
    double = soft_step(np.float32(width / 2) - np.abs(distance), 6.0) * tissue
    shift = int(60 / canvas.mpp)
    for plane in (canvas.first, canvas.second):
        plane += double * (0.75 * np.roll(plane, shift, axis=1) + 0.25 * np.abs(plane))
    return double > 0.5


def defocus(light: NDArray[np.float32], tissue: Mask, rng: np.random.Generator, mpp: float) -> Mask:
    """Blur a round area of the picture, in place. Returns where, (h, w)."""
    x, y = _point_in(tissue, rng)
    radius = rng.uniform(110, 170) / mpp
    window = _around(x, y, 1.4 * radius, tissue.shape)
    rows, cols = np.ogrid[window]
    wobble = 0.12 * smooth_noise(rng, light[window].shape[:2], radius)
    distance = (np.hypot(rows - y, cols - x) / radius).astype(np.float32) + wobble
    share = soft_step(1 - distance, 0.3)
    view = light[window]
    for c in range(3):
        blurred = ndimage.gaussian_filter(view[..., c], 3.0 / mpp, truncate=2.0)
        view[..., c] += share * (blurred - view[..., c])
    where = np.zeros(tissue.shape, bool)
    where[window] = share > 0.5
    return where


def bubble(light: NDArray[np.float32], tissue: Mask, rng: np.random.Generator, mpp: float) -> Mask:
    """Trap air under the cover slip: a dark grey rim, within it a faded picture, in place. Returns where, (h, w)."""
    x, y = _point_in(tissue, rng)
    radius = min(rng.uniform(110, 220) / mpp, 0.3 * min(tissue.shape))
    window = _around(x, y, 1.3 * radius, tissue.shape)
    rows, cols = np.ogrid[window]
    view = light[window]
    wobble = 0.05 * smooth_noise(rng, view.shape[:2], radius)
    inward = ((1 + wobble) * np.float32(radius) - np.hypot(rows - y, cols - x).astype(np.float32)) * np.float32(mpp)
    share = soft_step(inward, 1.5)
    # Air bends the light at its edge out of the objective, whatever its colour.
    width = np.float32(rng.uniform(2.5, 4.0))
    rim = rng.uniform(0.5, 0.9) * np.exp(-0.5 * np.square(inward / width))
    for c in range(3):
        glass = light[..., c].max()
        blurred = ndimage.gaussian_filter(view[..., c], 2.5 / mpp, truncate=2.0)
        view[..., c] += share * (glass + np.float32(0.55) * (blurred - glass) - view[..., c])
        view[..., c] *= np.exp(rim * np.float32(-math.log(10)))
    where = np.zeros(tissue.shape, bool)
    where[window] = inward > -2 * width
    return where


def pen(light: NDArray[np.float32], tissue: Mask, rng: np.random.Generator, mpp: float) -> Mask:
    """Draw a felt-pen stroke beside and over the tissue, in place. Returns where, (h, w)."""
    h, w = tissue.shape
    x, y = _point_in(tissue, rng)
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.35, 0.6) * min(h, w)
    rows, cols = np.ogrid[0:h, 0:w]
    dx, dy = (cols - x).astype(np.float32), (rows - y).astype(np.float32)
    along = dx * np.float32(math.cos(angle)) + dy * np.float32(math.sin(angle))
    across = dy * np.float32(math.cos(angle)) - dx * np.float32(math.sin(angle))
    across += np.square(along) * np.float32(rng.uniform(-0.25, 0.25) / length)
    beyond = np.maximum(np.abs(along) - np.float32(length), 0)
    stroke = soft_step(np.float32(rng.uniform(30, 45) / mpp) - np.hypot(across, beyond), 5.0)
    ink = _INKS[int(rng.integers(len(_INKS)))]
    streaks = stroke * (0.8 + 0.12 * smooth_noise(rng, (h, w), 20 / mpp))
    for c in range(3):
        light[..., c] *= np.exp(streaks * np.float32(-math.log(10) * ink[c]))
    return stroke > 0.5


def _around(x: int, y: int, reach: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The part of a picture (h, w) that lies within some pixels of a point."""
    h, w = shape
    margin = int(reach)
    return slice(max(0, y - margin), min(h, y + margin)), slice(max(0, x - margin), min(w, x + margin))


def _crease(tissue: Mask, rng: np.random.Generator, mpp: float) -> Plane:
    """Signed distance in pixels to a gently curved line through the tissue."""
    h, w = tissue.shape
    x, y = _point_in(tissue, rng)
    angle = rng.uniform(0, np.pi)
    rows, cols = np.ogrid[0:h, 0:w]
    distance = (rows - y) * np.float32(math.cos(angle)) - (cols - x) * np.float32(math.sin(angle))
    return distance.astype(np.float32) + 14 / np.float32(mpp) * smooth_noise(rng, (h, w), 150 / mpp)


def _point_in(tissue: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """A random tissue pixel, (x, y)."""
    step = 16
    rows, cols = np.nonzero(tissue[::step, ::step])
    k = int(rng.integers(len(rows)))
    return int(cols[k]) * step, int(rows[k]) * step
