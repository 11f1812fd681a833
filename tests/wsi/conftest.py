"""Small pictures with known contents, as slides in memory and in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from histotl.core.values import Level, SlideInfo

Pixels = npt.NDArray[np.uint8]
PERIOD_L0 = 64.0
"""Of the waves that say where a pixel lies, in level-0 pixels."""


@pytest.fixture(scope="session")
def waves() -> Callable[[int, int], Pixels]:
    """Picture whose red swings along x and green along y, 64 level-0 pixels a period, with dither."""

    def make(width: int, height: int) -> Pixels:
        rng = np.random.default_rng(0)
        image = np.empty((height, width, 3), np.float32)
        image[..., 0] = 128 + 100 * np.sin(2 * np.pi * (np.arange(width) + 0.5) / PERIOD_L0)
        image[..., 1] = 128 + 100 * np.sin(2 * np.pi * (np.arange(height) + 0.5) / PERIOD_L0)[:, None]
        image[..., 2] = 90
        return np.floor(image + rng.random(image.shape, np.float32)).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def position_error() -> Callable[[Pixels, tuple[float, float], tuple[float, float]], float]:
    """Largest distance, in level-0 pixels, between where a tile of `waves` lies and where it should.

    Measured at both ends of the tile in both axes by the phase of the wave, so a wrong field of view shows as well.
    """

    def phase_error(profile: npt.NDArray[np.float64], start: float, step: float) -> float:
        """Mean shift of the wave in these samples against where they should lie, by least squares."""
        at = 2 * np.pi * (start + (np.arange(len(profile)) + 0.5) * step) / PERIOD_L0
        design = np.stack([np.sin(at), np.cos(at), np.ones_like(at)], axis=1)
        sine, cosine, _ = np.linalg.lstsq(design, profile, rcond=None)[0]
        return float(np.arctan2(cosine, sine) / (2 * np.pi) * PERIOD_L0)

    def measure(tile: Pixels, corner: tuple[float, float], footprint: tuple[float, float]) -> float:
        errors = []
        profiles = (tile[..., 0].mean(0, dtype=np.float64), tile[..., 1].mean(1, dtype=np.float64))
        for profile, start, length in zip(profiles, corner, footprint, strict=True):
            step, third = length / len(profile), len(profile) // 3
            errors.append(phase_error(profile[:third], start, step))
            errors.append(phase_error(profile[-third:], start + (len(profile) - third) * step, step))
        return max(abs(error) for error in errors)

    return measure


@pytest.fixture(scope="session")
def shrink() -> Callable[[Pixels, int, int], Pixels]:
    """A level of a pyramid: the whole picture at another size."""

    def make(image: Pixels, width: int, height: int) -> Pixels:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture(scope="session")
def slide_info() -> Callable[..., SlideInfo]:
    """A SlideInfo of one level, with changes."""

    def make(width: int = 4000, height: int = 3000, **changes: Any) -> SlideInfo:
        fields: dict[str, Any] = {
            "path": Path("s.tiff"),
            "slide_id": "s",
            "reader": "array",
            "vendor": "test",
            "width": width,
            "height": height,
            "mpp_x": 0.25,
            "mpp_y": 0.25,
            "mpp_source": "test",
            "levels": (Level(width=width, height=height, downsample=1.0),),
            "bounds_l0": (0, 0, width, height),
        }
        return SlideInfo(**fields | changes)

    return make


@pytest.fixture(scope="session")
def stained() -> Callable[..., Pixels]:
    """H&E-like texture by Beer-Lambert, uint8 (h, w, 3), on glass of a given colour."""

    def make(height: int, width: int, *, strength: float = 1.0, glass: float = 243.0, seed: int = 0) -> Pixels:
        rng = np.random.default_rng(seed)
        stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
        density = rng.gamma(2.0, 0.15, (height, width, 2)) * strength
        return np.clip(glass * 10 ** (-density @ stains) + rng.normal(0, 1, (height, width, 3)), 0, 255).astype(
            np.uint8
        )

    return make
