"""What goes wrong with tiles, done to clean ones by known amounts: blur, pen, fold, bubble, blank, blood, JPEG.

All functions take and give uint8 RGB (h, w, 3); sizes are in µm. A stroke, band or rim crosses the tile at a random
place and angle. Light is absorbed by Beer-Lambert, and what happens before the camera gets the camera's noise after it.
"""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Tile = NDArray[np.uint8]
Plane = NDArray[np.float64]

INKS: Final = {
    "blue": (0.95, 0.55, 0.10),
    "green": (0.80, 0.20, 0.60),
    "red": (0.03, 0.75, 0.70),
    "black": (0.85, 0.85, 0.85),
}
"""Decadic absorbance of felt pens in R, G, B."""

_NOISE = 1.1
"""Standard deviation of the camera's noise, levels."""


def blur(tile: Tile, rng: np.random.Generator, mpp: float, *, sigma_um: float = 2.0) -> Tile:
    """Put the whole tile out of focus: a Gaussian of this standard deviation."""
    sigma = sigma_um / mpp
    return _expose(ndimage.gaussian_filter(tile.astype(np.float64), (sigma, sigma, 0)), rng)


def pen(tile: Tile, rng: np.random.Generator, mpp: float, *, ink: str, width_um: float = 30.0) -> Tile:
    """Draw a stroke of felt pen over the tile."""
    distance = np.abs(_line(tile, rng, mpp))
    cover = _step(width_um / 2 - distance, 2.0) * rng.uniform(0.6, 1.0)
    return _expose(_absorb(tile, cover[..., None] * np.array(INKS[ink])), rng)


def fold(tile: Tile, rng: np.random.Generator, mpp: float, *, width_um: float = 30.0) -> Tile:
    """Lay the section double along a band: the densities of the tissue beside it are added, as far as it is tissue."""
    distance = np.abs(_line(tile, rng, mpp))
    double = _step(width_um / 2 - distance, 2.0)
    density = -np.log10((tile.astype(np.float64) + 1) / 256)
    beside = np.roll(density, round(1.5 * width_um / mpp), axis=int(rng.integers(2)))
    return _expose(_absorb(tile, double[..., None] * beside), rng)


def bubble(tile: Tile, rng: np.random.Generator, mpp: float, *, radius_um: float = 120.0) -> Tile:
    """Put the edge of an air bubble across the tile: a dark grey rim, beyond it a faded picture out of focus."""
    h, w = tile.shape[:2]
    angle, reach = rng.uniform(0, 2 * math.pi), radius_um + rng.uniform(-0.25, 0.25) * min(h, w) * mpp
    y, x = np.mgrid[0:h, 0:w] * mpp
    cx, cy = w * mpp / 2 + reach * math.cos(angle), h * mpp / 2 + reach * math.sin(angle)
    inward = radius_um - np.hypot(x - cx, y - cy)
    light = tile.astype(np.float64)
    away = ndimage.gaussian_filter(light, (2.5 / mpp, 2.5 / mpp, 0))
    inside = _step(inward, 1.5)[..., None]
    faded = 245 - 0.55 * (245 - away)
    light = light * (1 - inside) + faded * inside
    rim = rng.uniform(0.5, 0.9) * np.exp(-0.5 * (inward / rng.uniform(2.5, 4.0)) ** 2)
    return _expose(light * 10 ** -rim[..., None], rng)


def jpeg(tile: Tile, rng: np.random.Generator, mpp: float, *, quality: int = 25) -> Tile:
    """Compress once more, with the grid of blocks at a random phase."""
    del mpp
    dy, dx = rng.integers(0, 8, 2)
    padded = np.pad(tile, ((dy, 0), (dx, 0), (0, 0)), mode="edge")
    stream = io.BytesIO()
    Image.fromarray(padded).save(stream, format="JPEG", quality=quality)
    return np.asarray(Image.open(stream))[dy:, dx:]


def glass(tile: Tile, rng: np.random.Generator, mpp: float, *, share: float = 0.5) -> Tile:
    """Cut the tissue off along a line: this share of the tile is bare glass."""
    distance = _line(tile, rng, mpp, centred=True)
    bare = (distance > np.quantile(distance, 1 - share))[..., None]
    return _expose(np.where(bare, 243.0, tile.astype(np.float64)), rng)


def blood(tile: Tile, rng: np.random.Generator, mpp: float, *, share: float = 0.3) -> Tile:
    """Spill red cells on this share of the tile: discs of 6.5 µm that take blue and green light and little red."""
    h, w = tile.shape[:2]
    pool = ndimage.gaussian_filter(rng.normal(size=(h, w)), 15 / mpp)
    lake = pool > np.quantile(pool, 1 - share)
    seeds = np.zeros((h, w), bool)
    count = int(lake.sum() * mpp**2 / 38)
    rows, cols = np.nonzero(lake)
    chosen = rng.integers(0, len(rows), count)
    seeds[rows[chosen], cols[chosen]] = True
    disc = ndimage.distance_transform_edt(~seeds) * mpp < 3.25
    cells = np.where(disc, rng.uniform(0.9, 1.1), 0.0)[..., None] * np.array([0.08, 0.36, 0.32])
    return _expose(np.where(disc[..., None], 240 * 10**-cells, tile.astype(np.float64)), rng)


def _line(tile: Tile, rng: np.random.Generator, mpp: float, *, centred: bool = False) -> Plane:
    """Signed distance in µm to a slightly curved line through the middle part of the tile."""
    h, w = tile.shape[:2]
    angle = rng.uniform(0, 2 * math.pi)
    offset = 0.0 if centred else rng.uniform(-0.25, 0.25) * min(h, w) * mpp
    y, x = np.mgrid[0:h, 0:w] * mpp
    dx, dy = x - w * mpp / 2, y - h * mpp / 2
    along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    return np.asarray(across - offset + rng.uniform(-1, 1) * along**2 / (4 * w * mpp))


def _step(distance: Plane, soft: float) -> Plane:
    """0 to 1 across an edge that is some µm soft."""
    return np.asarray(np.clip(distance / soft + 0.5, 0, 1))


def _absorb(tile: Tile, density: Plane) -> Plane:
    """Light that comes through a decadic density laid on the tile."""
    return np.asarray(tile.astype(np.float64) * 10**-density)


def _expose(light: Plane, rng: np.random.Generator) -> Tile:
    noisy = light + rng.normal(0, _NOISE, light.shape) + 0.5
    return np.clip(noisy, 0, 255).astype(np.uint8)
