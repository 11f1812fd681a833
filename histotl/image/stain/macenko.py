"""Macenko stain normalisation, fitted once a slide.

Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. The plane of the two
stains is found by a singular value decomposition of the optical densities, the stains are the robust extremes of angle
in it, and every slide's stains and strengths are moved to those of a reference.

All of that is linear in optical density, so a fitted slide is one 3 x 3 matrix and is applied as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from histotl.core.errors import StainError, UsageError
from histotl.core.registry import register
from histotl.image._od import CURE, Array, OdTransform, od_table, stained_pixels

Vector = tuple[float, float, float]

MIN_ANGLE_DEG = 4.0
"""Two stains closer than this are one: unmixing them would amplify noise over 14-fold."""


@register("stain", "macenko")
@dataclass(frozen=True, kw_only=True)
class Macenko:
    """Moves a slide's haematoxylin and eosin to reference colours and strengths (Macenko 2009).

    Args:
        alpha: Percentile of angle taken as the extreme, robust against outliers; 0 to 50, exclusive of 50.
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        percentile: Percentile of a stain's concentration that counts as its strength.
        residual: The part of a colour that no mixture of the two stains makes (blood, pigment, pen): ``keep`` it as it
            is, or ``drop`` it, as the paper does.
        haematoxylin: Reference colour of haematoxylin as R, G, B optical densities; the one that the authors published
            with their code.
        eosin: The same of eosin.
        strengths: Reference concentrations of haematoxylin and eosin at ``percentile``; likewise.
    """

    alpha: float = 1.0
    beta: float = 0.15
    percentile: float = 99.0
    residual: Literal["keep", "drop"] = "keep"
    haematoxylin: Vector = (0.5626, 0.7201, 0.4062)
    eosin: Vector = (0.2159, 0.8012, 0.5581)
    strengths: tuple[float, float] = (1.9705, 1.0308)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 50:
            raise UsageError(f"macenko: alpha is {self.alpha}", hint="give a percentile of 0 to below 50, as 1.0")
        if not 0 < self.percentile <= 100:
            raise UsageError(f"macenko: percentile is {self.percentile}", hint="give one above 0 to 100, such as 99.0")
        if not self.beta > 0:
            raise UsageError(f"macenko: beta is {self.beta}", hint="give an optical density above 0, such as 0.15")
        if not min(self.strengths) > 0:
            raise UsageError(f"macenko: strengths is {self.strengths}", hint="give two numbers above 0")
        if _angle_deg(np.array([self.haematoxylin, self.eosin])) < MIN_ANGLE_DEG:
            raise UsageError("macenko: the reference stains have the same colour", hint="give two different stains")

    @property
    def needs_fit(self) -> bool:
        """A sample of the slide's tissue is needed."""
        return True

    def fit(self, sample: torch.Tensor) -> OdTransform:
        """Estimate stains and strengths from uint8 RGB (n, h, w, 3), tissue tiles of one slide.

        Raises:
            NoTissueError: Fewer than 1000 stained pixels.
            StainError: All of the tissue has one colour, so there are no two stains to separate.
        """
        stained = od_table()[stained_pixels(sample, beta=self.beta, name="macenko")]
        source = self._stains(stained)
        strengths = np.percentile(_coordinates(source, stained)[:2], self.percentile, axis=1)
        if strengths.min() <= 0:
            fact = f"macenko: one of the two stains is absent among {len(stained)} stained pixels"
            raise StainError(fact, hint=CURE)
        scale = np.append(np.array(self.strengths) / strengths, 1.0 if self.residual == "keep" else 0.0)
        target = np.array([self.haematoxylin, self.eosin])
        matrix = _with_residual(target) @ np.diag(scale) @ np.linalg.inv(_with_residual(source))
        state = {"stains": source.tolist(), "strengths": strengths.tolist(), "pixels": len(stained)}
        return OdTransform(matrix=tuple(tuple(row) for row in matrix.tolist()), state=state)

    def _stains(self, stained: Array) -> Array:
        """Unit vectors (2, 3) of haematoxylin and eosin."""
        # The right singular vectors are the eigenvectors of this 3 x 3 matrix, without an SVD of a million rows.
        _, vectors = np.linalg.eigh(stained.T @ stained)
        plane = vectors[:, :0:-1].T
        flat = stained @ plane.T
        # Angles are taken about the mean colour: all densities are positive, so none of them wraps around.
        middle = flat.mean(axis=0) / np.linalg.norm(flat.mean(axis=0))
        angle = np.arctan2(middle[0] * flat[:, 1] - middle[1] * flat[:, 0], flat @ middle)
        low, high = np.percentile(angle, [self.alpha, 100 - self.alpha])
        found: Array = np.array([_turned(middle, low) @ plane, _turned(middle, high) @ plane])
        apart = math.degrees(high - low)
        if apart < MIN_ANGLE_DEG:
            fact = f"macenko: {len(stained)} stained pixels have one colour ({apart:.1f}° between the two stains found)"
            raise StainError(fact, hint=CURE)
        # Haematoxylin is the blue one: it takes more of the red light.
        return found if found[0, 0] > found[1, 0] else found[::-1]


def _turned(vector: Array, angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    turned: Array = np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])
    return turned


def _with_residual(stains: Array) -> Array:
    """Columns: the two stains as unit vectors, and the unit vector at right angles to both (3, 3)."""
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    third = np.cross(unit[0], unit[1])
    return np.column_stack([unit[0], unit[1], third / np.linalg.norm(third)])


def _coordinates(stains: Array, density: Array) -> Array:
    """Concentrations of the two stains and the residual (3, n); the first two are the least-squares solution."""
    return np.asarray(np.linalg.solve(_with_residual(stains), density.T), dtype=np.float64)


def _angle_deg(stains: Array) -> float:
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    return math.degrees(math.acos(min(1.0, float(unit[0] @ unit[1]))))
