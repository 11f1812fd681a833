"""Random fields: smooth noise on the plane, periodic noise on a closed curve, soft edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histotl.paint.values import Plane


def enlarge(field: Plane, shape: tuple[int, int], scale_px: float) -> Plane:
    """Enlarge a coarse field `scale_px` times with bicubic interpolation and crop it to `shape`."""
    h, w = shape
    box = (0.5, 0.5, 0.5 + w / scale_px, 0.5 + h / scale_px)
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(picture.resize((w, h), Image.Resampling.BICUBIC, box=box), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> Plane:
    """Gaussian noise of about unit variance whose blobs are some `scale_px` pixels wide; float32, `shape`."""
    coarse = (int(shape[0] / scale_px) + 3, int(shape[1] / scale_px) + 3)
    # Interpolation between independent values loses variance; 1.35 restores it on average.
    return enlarge(1.35 * rng.standard_normal(coarse, dtype=np.float32), shape, scale_px)


def ring_noise(rng: np.random.Generator, n: int, harmonics: int) -> Plane:
    """Smooth periodic noise at `n` points of a closed curve: `harmonics` sines of falling amplitude, about -1 to 1."""
    turn = np.arange(n, dtype=np.float64)[:, None] / n
    order = np.arange(1, harmonics + 1)
    amplitude = rng.normal(size=harmonics) / order
    phase = rng.uniform(0, 2 * np.pi, harmonics)
    return (np.sin(2 * np.pi * turn * order + phase) @ amplitude).astype(np.float32)


def soft_step(distance_px: NDArray[np.floating], width_px: float = 1.5) -> Plane:
    """0 outside (negative distance), 1 inside, a ramp of `width_px` pixels between: an antialiased edge."""
    step: Plane = np.clip(distance_px * np.float32(1.0 / width_px) + np.float32(0.5), 0.0, 1.0, dtype=np.float32)
    return step
