"""Stains of the two painted sites, and the colour that dye densities take in front of the lamp."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from histotl.paint.values import Pixels, Plane, Stain

Site = Literal["A", "B"]
SITES: Final[tuple[Site, ...]] = ("A", "B")
Triple = tuple[float, float, float]

_VECTOR_JITTER = 0.035
_STRENGTH_JITTER = 0.20
_WHITE_JITTER = 1.5


@dataclass(frozen=True, kw_only=True)
class _House:
    """The habits of one laboratory and its scanner, around which every slide varies."""

    first: Triple
    second: Triple
    white: Triple
    strengths: tuple[float, float]


# Both near the vectors of Ruifrok & Johnston (2001): haematoxylin (0.65, 0.70, 0.29), eosin (0.07, 0.99, 0.11).
# The spread from patient to patient is wider than the gap between the houses, so that they overlap.
_HOUSES: Final[dict[Site, _House]] = {
    "A": _House(
        first=(0.66, 0.69, 0.30), second=(0.16, 0.95, 0.27), white=(243.0, 242.0, 244.0), strengths=(0.30, 0.23)
    ),
    "B": _House(
        first=(0.58, 0.77, 0.27), second=(0.10, 0.97, 0.22), white=(242.0, 240.0, 236.0), strengths=(0.34, 0.20)
    ),
}
_BROWN: Final = _House(
    first=(0.68, 0.66, 0.32), second=(0.27, 0.57, 0.78), white=(243.0, 242.0, 243.0), strengths=(0.20, 0.34)
)


def site_stain(site: Site, rng: np.random.Generator) -> Stain:
    """H&E stain of one patient's slides at a site: the house's vectors, bath times and white, each with jitter."""
    return _vary(_HOUSES[site], rng)


def brown_stain(rng: np.random.Generator) -> Stain:
    """An immunostain: haematoxylin and brown DAB in eosin's place; out of distribution for H&E models."""
    return _vary(_BROWN, rng)


def rescaled(stain: Stain, first: float, second: float) -> Stain:
    """The same stain on tissue that takes up `first` times the nuclear dye and `second` times the counterstain."""
    return replace(stain, strengths=(stain.strengths[0] * first, stain.strengths[1] * second))


def absorb(first: Plane, second: Plane, stain: Stain) -> NDArray[np.float32]:
    """Light that comes through: ``white * 10 ** -(first * a + second * b)`` per channel (Beer-Lambert).

    Args:
        first: Density of the nuclear dye, (h, w).
        second: Density of the counterstain, (h, w).
        stain: Absorbances and white.

    Returns:
        Intensities, float32, (h, w, 3), 0 to 255.
    """
    light = np.empty((*first.shape, 3), np.float32)
    for c in range(3):
        depth = first * np.float32(-math.log(10) * stain.first[c])
        depth += second * np.float32(-math.log(10) * stain.second[c])
        np.exp(depth, out=depth)
        light[..., c] = depth * np.float32(stain.white[c])
    return light


def expose(light: NDArray[np.float32], rng: np.random.Generator, noise: float = 1.1) -> Pixels:
    """Camera: add a little noise (grey levels, standard deviation `noise`) and round to uint8."""
    # Slices of one noise pool at random offsets: fresh normal numbers for every pixel cost more than all the rest.
    h, w = light.shape[:2]
    pool = rng.standard_normal(2 * w * 64 + w, dtype=np.float32) * np.float32(noise)
    for y in range(h):
        start = int(rng.integers(0, 2 * w * 64))
        light[y] += pool[start : start + w, None]
    light += np.float32(0.5)
    return np.clip(light, 0, 255, out=light).astype(np.uint8)


def _vary(house: _House, rng: np.random.Generator) -> Stain:
    return Stain(
        first=_direction(house.first, rng),
        second=_direction(house.second, rng),
        white=_near(house.white, rng),
        strengths=(
            house.strengths[0] * math.exp(rng.normal(0, _STRENGTH_JITTER)),
            house.strengths[1] * math.exp(rng.normal(0, _STRENGTH_JITTER)),
        ),
    )


def _direction(vector: Triple, rng: np.random.Generator) -> Triple:
    moved = np.clip(np.asarray(vector) + rng.normal(0, _VECTOR_JITTER, 3), 0.02, None)
    r, g, b = moved / np.linalg.norm(moved)
    return (float(r), float(g), float(b))


def _near(white: Triple, rng: np.random.Generator) -> Triple:
    r, g, b = np.clip(np.asarray(white) + rng.normal(0, _WHITE_JITTER, 3), 225, 251)
    return (float(r), float(g), float(b))
