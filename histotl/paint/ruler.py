"""A slide that says where each of its pixels lies: to measure the field of view of whatever was read from it.

Red rises with x and green with y, both linearly in µm: two numbers fitted to a tile give its position and extent. Blue
carries a wave of known length in µm along x and y, which refines both by an order of magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from histotl.core.errors import UsageError
from histotl.paint.values import Pixels

WAVE_UM: Final = 25.0
"""Length of the blue wave: a tile of the finest pixels in use (224 px of 0.12 µm) sees one period of it."""

_LOW, _HIGH = 24.0, 232.0
"""Range of the ramps: steep, but clear of clipping. Blue is dark, so that tissue finders take all of it for tissue."""

_BLUE, _SWING = 90.0, 30.0
_DITHER = 2.0
"""Width of the dither in grey levels: enough to survive some averaging and rounding."""

_ROWS: Final = 256
_MIN_PX_PER_WAVE = 4.0


@dataclass(frozen=True, kw_only=True)
class RulerReading:
    """Where a tile lies on the ruler, in µm from the slide's upper left corner.

    Args:
        x_um: Left edge.
        y_um: Upper edge.
        width_um: Field of view in x.
        height_um: Field of view in y.
    """

    x_um: float
    y_um: float
    width_um: float
    height_um: float


def paint_ruler(mpp: float, size: tuple[int, int], *, seed: int = 0) -> Pixels:
    """Paint the ruler.

    Write it with ``write_pyramid(..., quality=100, subsampling="444")``: a stronger compression rounds the ramps to
    stairs.

    Args:
        mpp: Pixel size in µm.
        size: Width and height in pixels.
        seed: Seed of the dither that carries the ramps' fractions of a grey level.

    Returns:
        uint8 RGB, (height, width, 3). Red at x µm is ``24 + 208 * x / width_um`` on average, green the same in y; blue
        is ``90 + 30 * (cos(2 pi x / 25) + cos(2 pi y / 25))``.

    Raises:
        UsageError: Pixel size or size is not positive.
    """
    width, height = size
    if not (math.isfinite(mpp) and mpp > 0 and width > 0 and height > 0):
        raise UsageError(f"ruler of {width}x{height} px at {mpp} µm/px", hint="use positive numbers")
    rng = np.random.default_rng(seed)
    red, green = _ramp(width), _ramp(height)
    wave_x, wave_y = _wave(width, mpp), _wave(height, mpp)
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        rows = slice(top, min(top + _ROWS, height))
        shape = (rows.stop - top, width)
        blue = _BLUE + wave_x + wave_y[rows, None]
        # Truncating value + uniform(-0.5, 1.5) keeps every mean exact.
        for channel, value in enumerate((red, green[rows, None], blue)):
            image[rows, :, channel] = value + _DITHER * rng.random(shape, dtype=np.float32) - (_DITHER - 1) / 2
    return image


def read_ruler(tile: Pixels, extent_um: tuple[float, float]) -> RulerReading:
    """Measure position and field of view of a tile cut from the ruler, at any scale, not rotated.

    Straight lines are fitted to the mean red of the columns and the mean green of the rows, then a wave near that
    scale to the mean blue (least squares). Where a wave is under 4 pixels long the lines alone decide.

    Args:
        tile: uint8 RGB, (h, w, 3), at least 8 pixels a side.
        extent_um: Width and height of the whole ruler in µm.

    Raises:
        UsageError: The tile is smaller than that, or does not show the ruler.
    """
    if min(tile.shape[:2]) < 8:
        raise UsageError(f"a tile of shape {tile.shape} is too small to measure", hint="read at least 8x8 pixels")
    x_um, width_um = _measure(tile[..., 0].mean(axis=0), tile[..., 2].mean(axis=0), extent_um[0])
    y_um, height_um = _measure(tile[..., 1].mean(axis=1), tile[..., 2].mean(axis=1), extent_um[1])
    return RulerReading(x_um=x_um, y_um=y_um, width_um=width_um, height_um=height_um)


def _ramp(n: int) -> NDArray[np.float32]:
    """Value at pixel centres of a line from _LOW at the first pixel's outer edge to _HIGH at the last one's."""
    return (_LOW + (_HIGH - _LOW) * (np.arange(n) + 0.5) / n).astype(np.float32)


def _wave(n: int, mpp: float) -> NDArray[np.float32]:
    turn = 2 * np.pi / WAVE_UM * mpp * (np.arange(n) + 0.5)
    return np.asarray(_SWING * np.cos(turn), dtype=np.float32)


def _measure(ramp: NDArray[np.float64], wave: NDArray[np.float64], extent_um: float) -> tuple[float, float]:
    """(position of the first pixel's outer edge, length of all pixels) in µm."""
    n = len(ramp)
    at = np.arange(n, dtype=np.float64) + 0.5
    slope, start = np.polyfit(at, ramp, 1)
    per_um = (_HIGH - _LOW) / extent_um
    scale = float(slope / per_um)  # µm per pixel of the tile
    left_um = float((start - _LOW) / per_um)
    if not scale > 0:
        raise UsageError("red does not rise along x, or green along y: no ruler", hint="read from a ruler slide")
    if scale * _MIN_PX_PER_WAVE > WAVE_UM:
        return left_um, scale * n
    # The middle is where the line is surest, so the wave's period nearest to it is the right one.
    middle_um = left_um + scale * n / 2
    scale, phase_um = _fit_wave(at - n / 2, wave, scale)
    middle_um += (phase_um - middle_um + WAVE_UM / 2) % WAVE_UM - WAVE_UM / 2
    return middle_um - scale * n / 2, scale * n


def _fit_wave(at: NDArray[np.floating], wave: NDArray[np.float64], scale: float) -> tuple[float, float]:
    """Refine µm per pixel; also the position of ``at == 0`` in µm, up to a whole number of waves."""

    def solve(um_per_px: float) -> tuple[NDArray[np.floating], float]:
        turn = 2 * np.pi / WAVE_UM * um_per_px * at
        design = np.stack([np.ones_like(turn), np.cos(turn), np.sin(turn)], axis=1)
        weights = np.linalg.lstsq(design, wave, rcond=None)[0]
        return weights, float(np.square(wave - design @ weights).sum())

    periods = scale * len(at) / WAVE_UM
    # Within half a period over the tile's length the misfit has one valley.
    slack = min(0.3, 0.4 / periods)
    found = optimize.minimize_scalar(
        lambda value: solve(value)[1],
        bounds=(scale * (1 - slack), scale * (1 + slack)),
        method="bounded",
        options={"xatol": scale * 1e-7},
    )
    weights, _ = solve(float(found.x))
    # cos(phase + turn) = cos(phase) cos(turn) - sin(phase) sin(turn)
    return float(found.x), float(math.atan2(-weights[2], weights[1]) * WAVE_UM / (2 * np.pi))
