"""Two stains in optical density: finding out how strong they are, and moving them to those of a reference.

What a method adds is where the colours of a slide's two stains come from. The rest is the same for all: strengths are
high percentiles of the concentrations, and the slide is moved to the reference by one 3 x 3 matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from histotl.core.errors import StainError, UsageError
from histotl.image._od import CURE, Array, OdTransform, od_table, stained_pixels

Vector = tuple[float, float, float]

MIN_ANGLE_DEG = 4.0
"""Two stains closer than this are one: unmixing them would amplify noise over 14-fold."""

LEAST_STRENGTH = 0.05
"""A stain weaker than this share of the reference is absent: its noise would be made 20 times stronger."""


@dataclass(frozen=True, kw_only=True)
class TwoStains(ABC):
    """What all methods that move two stains have in common; the arguments are explained where they are used."""

    beta: float = 0.15
    percentile: float = 99.0
    residual: Literal["keep", "drop"] = "keep"
    haematoxylin: Vector = (0.5626, 0.7201, 0.4062)
    eosin: Vector = (0.2159, 0.8012, 0.5581)
    strengths: tuple[float, float] = (1.9705, 1.0308)

    def __post_init__(self) -> None:
        name = self._name
        if not 0 < self.percentile <= 100:
            raise UsageError(f"{name}: percentile is {self.percentile}", hint="give one above 0 to 100, such as 99.0")
        if not self.beta > 0:
            raise UsageError(f"{name}: beta is {self.beta}", hint="give an optical density above 0, such as 0.15")
        if not min(self.strengths) > 0:
            raise UsageError(f"{name}: strengths is {self.strengths}", hint="give two numbers above 0")
        if angle_deg(np.array([self.haematoxylin, self.eosin])) < MIN_ANGLE_DEG:
            raise UsageError(f"{name}: the reference stains have the same colour", hint="give two different stains")

    @property
    def needs_fit(self) -> bool:
        """A sample of the slide's tissue is needed."""
        return True

    def fit(self, sample: torch.Tensor) -> OdTransform:
        """Estimate stains and strengths from uint8 RGB (n, h, w, 3), tissue tiles of one slide.

        Raises:
            NoTissueError: Fewer than 1000 stained pixels.
            StainError: All of the tissue has one colour, or one of the stains is absent.
        """
        stained = od_table()[stained_pixels(sample, beta=self.beta, name=self._name)]
        source = self.stains(stained)
        strengths = np.percentile(_coordinates(source, stained)[:2], self.percentile, axis=1)
        if (strengths < np.array(self.strengths) * LEAST_STRENGTH).any():
            seen = " and ".join(f"{strength:.3g}" for strength in strengths)
            fact = (
                f"{self._name}: one of the two stains is absent among {len(stained)} stained pixels (strengths {seen})"
            )
            raise StainError(fact, hint=CURE)
        scale = np.append(np.array(self.strengths) / strengths, 1.0 if self.residual == "keep" else 0.0)
        target = np.array([self.haematoxylin, self.eosin])
        matrix = _with_residual(target) @ np.diag(scale) @ np.linalg.inv(_with_residual(source))
        state = {"stains": source.tolist(), "strengths": strengths.tolist(), "pixels": len(stained)}
        return OdTransform(matrix=tuple(tuple(row) for row in matrix.tolist()), state=state)

    @abstractmethod
    def stains(self, stained: Array) -> Array:
        """Unit vectors (2, 3) of haematoxylin and eosin.

        Args:
            stained: Optical densities (n, 3) of stained pixels.

        Raises:
            StainError: They have one colour.
        """

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()


def angle_deg(stains: Array) -> float:
    """Angle between two vectors (2, 3), degrees."""
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    return math.degrees(math.acos(min(1.0, float(unit[0] @ unit[1]))))


def refuse_one_colour(name: str, stained: Array, apart_deg: float) -> None:
    """StainError where two stains that were found are one."""
    if apart_deg < MIN_ANGLE_DEG:
        fact = f"{name}: {len(stained)} stained pixels have one colour ({apart_deg:.1f}° between the two stains found)"
        raise StainError(fact, hint=CURE)


def haematoxylin_first(stains: Array) -> Array:
    """The two stains in order: haematoxylin is the blue one, it takes more of the red light."""
    return stains if stains[0, 0] > stains[1, 0] else stains[::-1]


def _with_residual(stains: Array) -> Array:
    """Columns: the two stains as unit vectors, and the unit vector at right angles to both (3, 3)."""
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    third = np.cross(unit[0], unit[1])
    return np.column_stack([unit[0], unit[1], third / np.linalg.norm(third)])


def _coordinates(stains: Array, density: Array) -> Array:
    """Concentrations of the two stains and the residual (3, n); the first two are the least-squares solution."""
    return np.asarray(np.linalg.solve(_with_residual(stains), density.T), dtype=np.float64)
