"""Crypts of the colon: what each kind looks like, and the coordinates of one gland.

A gland is a tube cut at some angle: all points within a radius of a short, bent axis. The distance to the axis and the
position along the outline are its own coordinates, in which its cells stand side by side like columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from histotl.paint.nuclei import NucleusName
from histotl.paint.values import Plane, Tissue


@dataclass(frozen=True, kw_only=True)
class GlandStyle:
    """How the glands of one tissue look; lengths in µm, shares 0 to 1.

    Args:
        radius_um: Range of the radius.
        half_length_um: Range of half the length of the axis; 0 gives a round gland.
        gap_um: Stroma left around the gland; negative lets neighbours press on each other.
        bend: Curvature of the axis.
        rough: Irregularity of the outline, share of the radius.
        lumen: Range of the lumen's radius, share of the gland's radius.
        teeth: Range of the number of teeth of the lumen; empty for a smooth lumen.
        tooth: Depth of a tooth, share of the gland's radius.
        cell_um: Width of a cell at mid-height.
        goblet: Share of goblet cells.
        goblet_at: Depth of the mucin's centre, and half its height.
        cytoplasm: Densities of the two dyes in the cell body.
        nucleus: Kind of nucleus.
        layers: Nuclei per cell column.
        nucleus_at: Range of the nuclei's depth.
        radial: True when nuclei point to the lumen, False when they lie flat on the basement membrane.
    """

    radius_um: tuple[float, float]
    half_length_um: tuple[float, float]
    gap_um: float
    bend: float
    rough: float
    lumen: tuple[float, float]
    teeth: tuple[int, int] | None
    tooth: float
    cell_um: float
    goblet: float
    goblet_at: tuple[float, float]
    cytoplasm: tuple[float, float]
    nucleus: NucleusName
    layers: float
    nucleus_at: tuple[float, float]
    radial: bool


GLANDS: Final[dict[Tissue, GlandStyle]] = {
    "normal": GlandStyle(
        radius_um=(34, 43),
        half_length_um=(0, 14),
        gap_um=5,
        bend=0.1,
        rough=0.03,
        lumen=(0.12, 0.22),
        teeth=None,
        tooth=0.0,
        cell_um=8.5,
        goblet=0.72,
        goblet_at=(0.45, 0.36),
        cytoplasm=(0.24, 0.27),
        nucleus="basal",
        layers=1.15,
        nucleus_at=(0.86, 0.93),
        radial=False,
    ),
    "serrated": GlandStyle(
        radius_um=(38, 50),
        half_length_um=(0, 38),
        gap_um=4,
        bend=0.3,
        rough=0.05,
        lumen=(0.10, 0.20),
        teeth=(6, 11),
        tooth=0.50,
        cell_um=7.5,
        goblet=0.38,
        goblet_at=(0.36, 0.26),
        cytoplasm=(0.20, 0.32),
        nucleus="serrated",
        layers=1.3,
        nucleus_at=(0.78, 0.93),
        radial=False,
    ),
    "adenoma_low": GlandStyle(
        radius_um=(30, 40),
        half_length_um=(10, 90),
        gap_um=0,
        bend=0.5,
        rough=0.06,
        lumen=(0.08, 0.26),
        teeth=None,
        tooth=0.0,
        cell_um=6.0,
        goblet=0.14,
        goblet_at=(0.30, 0.20),
        cytoplasm=(0.26, 0.34),
        nucleus="pencil",
        layers=1.7,
        nucleus_at=(0.52, 0.88),
        radial=True,
    ),
    "adenoma_high": GlandStyle(
        radius_um=(25, 37),
        half_length_um=(0, 70),
        gap_um=-4,
        bend=0.9,
        rough=0.11,
        lumen=(0.10, 0.36),
        teeth=None,
        tooth=0.0,
        cell_um=6.2,
        goblet=0.02,
        goblet_at=(0.30, 0.15),
        cytoplasm=(0.26, 0.33),
        nucleus="bold",
        layers=2.1,
        nucleus_at=(0.16, 0.90),
        radial=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Gland:
    """One gland on the slide, in pixels: centre, direction of the axis, half its length, radius, bend."""

    tissue: Tissue
    x: float
    y: float
    angle: float
    half_length: float
    radius: float
    bend: float

    def local(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[Plane, Plane]:
        """Distance to the axis in pixels, and the position along the outline as a share of it (0 to 1)."""
        c, s = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        dx, dy = x - np.float32(self.x), y - np.float32(self.y)
        u = dx * c + dy * s
        v = dy * c - dx * s
        v += u * u * np.float32(self._curvature)
        along = np.clip(u, -self.half_length, self.half_length)
        u -= along
        turn = np.arctan2(np.abs(v), u)
        turn *= np.float32(self.radius)
        turn += np.float32(self.half_length) - along
        turn *= np.float32(0.5 / self._half_outline)
        # Never exactly 1: the table index must stay inside.
        turn = np.clip(np.where(v < 0, 1 - turn, turn), 0, np.float32(1 - 1e-6))
        return np.hypot(u, v), turn

    def place(
        self, turn: NDArray[np.float64], distance: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inverse of `local`: positions (n, 2) in pixels, and the direction away from the axis in radians."""
        signed = np.where(turn > 0.5, turn - 1, turn) * 2 * self._half_outline
        length = np.abs(signed)
        quarter = self.radius * math.pi / 2
        along = np.clip(self.half_length - (length - quarter), -self.half_length, self.half_length)
        phi = (length - (self.half_length - along)) / self.radius
        phi = np.copysign(phi, signed)
        u, v = along + distance * np.cos(phi), distance * np.sin(phi)
        v = v - u * u * self._curvature
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.stack([self.x + u * c - v * s, self.y + u * s + v * c], axis=1), phi + self.angle

    @property
    def outline_px(self) -> float:
        """Length of the outline in pixels."""
        return 2 * self._half_outline

    @property
    def reach_px(self) -> tuple[float, float]:
        """No pixel of the gland is further from its centre in x and in y."""
        c, s = abs(math.cos(self.angle)), abs(math.sin(self.angle))
        sag = abs(self._curvature) * (self.half_length + self.radius) ** 2
        around = self.radius * 1.25 + 4
        return (self.half_length * c + sag * s + around, self.half_length * s + sag * c + around)

    @property
    def _half_outline(self) -> float:
        return math.pi * self.radius + 2 * self.half_length

    @property
    def _curvature(self) -> float:
        return self.bend / (2 * (self.half_length + self.radius))
