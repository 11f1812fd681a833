"""Nuclei: a box of ready-made stamps per kind, printed where they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from histotl.paint.noise import smooth_noise, soft_step
from histotl.paint.values import Plane

NucleusName = Literal["basal", "serrated", "pencil", "bold", "lymphocyte", "spindle"]
_ANGLES = 16
_VARIANTS = 4


@dataclass(frozen=True, kw_only=True)
class _Kind:
    length_um: float
    width_um: float
    density: float
    texture: float


_KINDS: Final[dict[NucleusName, _Kind]] = {
    "basal": _Kind(length_um=7.6, width_um=5.0, density=0.95, texture=0.10),
    "serrated": _Kind(length_um=8.6, width_um=5.4, density=0.88, texture=0.14),
    "pencil": _Kind(length_um=13.5, width_um=4.4, density=1.00, texture=0.12),
    "bold": _Kind(length_um=11.0, width_um=6.8, density=1.08, texture=0.24),
    "lymphocyte": _Kind(length_um=5.9, width_um=5.2, density=0.98, texture=0.20),
    "spindle": _Kind(length_um=13.0, width_um=2.6, density=0.80, texture=0.08),
}


class NucleusBox:
    """Stamps of every kind of nucleus at every angle, in optical density of the nuclear dye.

    Args:
        rng: Source of the chromatin pattern.
        mpp: Pixel size in µm.
    """

    def __init__(self, rng: np.random.Generator, mpp: float) -> None:
        self.mpp = mpp
        self._stamps: dict[NucleusName, list[list[Plane]]] = {
            name: [[_draw(kind, math.pi * a / _ANGLES, rng, mpp) for _ in range(_VARIANTS)] for a in range(_ANGLES)]
            for name, kind in _KINDS.items()
        }

    def print(
        self,
        plane: Plane,
        name: NucleusName,
        xy: NDArray[np.float64],
        angle: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> None:
        """Print nuclei into a density plane; where nuclei overlap, the denser shows.

        Args:
            plane: Density of the nuclear dye, (h, w), changed in place.
            name: Kind of nucleus.
            xy: Centres in pixels, (n, 2); those too near the border for a whole stamp are left out.
            angle: Direction of the long axis in radians, (n,).
            rng: Chooses variants and strengths.
        """
        h, w = plane.shape
        stamps = self._stamps[name]
        half = stamps[0][0].shape[0] // 2
        col, row = np.floor(xy.T + 0.5).astype(np.intp)
        turn = np.floor(angle * (_ANGLES / math.pi) + 0.5).astype(np.intp) % _ANGLES
        pick = rng.integers(0, _VARIANTS, len(xy))
        strength = rng.uniform(0.68, 1.10, len(xy)).astype(np.float32)
        inside = (col >= half) & (row >= half) & (col < w - half) & (row < h - half)
        for i in np.flatnonzero(inside):
            window = plane[row[i] - half : row[i] + half + 1, col[i] - half : col[i] + half + 1]
            np.maximum(window, stamps[turn[i]][pick[i]] * strength[i], out=window)


def _draw(kind: _Kind, angle: float, rng: np.random.Generator, mpp: float) -> Plane:
    """One nucleus: an ellipse with a soft edge, a darker membrane and clumped chromatin; odd square side."""
    size = rng.uniform(0.80, 1.18)
    a, b = size * kind.length_um / 2 / mpp, size * rng.uniform(0.9, 1.1) * kind.width_um / 2 / mpp
    half = math.ceil(kind.length_um / 2 * 1.2 / mpp) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    bent = v + rng.normal(0, 0.05) * u * u / max(a, 1.0)
    radius = np.sqrt((u / a) ** 2 + (bent / b) ** 2)
    body = soft_step((1 - radius) * b)
    membrane = np.clip((radius - 0.55) / 0.45, 0, 1)
    chromatin = smooth_noise(rng, (2 * half + 1, 2 * half + 1), max(1.0, 1.1 / mpp))
    density = body * kind.density * (0.82 + 0.18 * membrane + kind.texture * chromatin)
    return np.asarray(np.maximum(density, 0), dtype=np.float32)
