"""Two stains in optical density: finding out how strong they are, and moving them to those of a reference.

What a method adds is where the colours of a slide's two stains come from. The rest is the same for all: strengths are
high percentiles of the concentrations, and the slide is moved to the reference by one 3 x 3 matrix.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from histotl.core.errors import StainError, UsageError
from histotl.image._od import CURE, Array, density_of, od_table
from histotl.image._planes import Triple
from histotl.image._slide_stain import SlideStain, rounded
from histotl.image._transforms import OdTransform
from histotl.image.estimate import Estimate, Numbers

Vector = Triple

MIN_ANGLE_DEG = 4.0
"""Two stains closer than this are one: unmixing them would amplify noise over 14-fold."""

LEAST_STRENGTH = 0.05
"""A stain weaker than this share of the reference is absent: its noise would be made 20 times stronger."""


@dataclass(frozen=True, kw_only=True)
class TwoStains(SlideStain):
    """What all methods that move two stains have in common; the arguments are explained where they are used."""

    percentile: float = 99.0
    residual: Literal["keep", "drop"] = "keep"
    haematoxylin: Vector = (0.5626, 0.7201, 0.4062)
    eosin: Vector = (0.2159, 0.8012, 0.5581)
    strengths: tuple[float, float] = (1.9705, 1.0308)

    def __post_init__(self) -> None:
        name = self.name
        if not 0 < self.percentile <= 100:
            raise UsageError(f"{name}: percentile is {self.percentile}", hint="give one above 0 to 100, such as 99.0")
        if not min(self.strengths) > 0:
            raise UsageError(f"{name}: strengths is {self.strengths}", hint="give two numbers above 0")
        if angle_deg(np.array([self.haematoxylin, self.eosin])) < MIN_ANGLE_DEG:
            raise UsageError(f"{name}: the reference stains have the same colour", hint="give two different stains")
        super().__post_init__()

    def measure(self, stained: npt.NDArray[np.uint8], white: Array) -> Numbers:
        """Colours and strengths of the two stains; see :meth:`SlideStain.measure`.

        Raises:
            StainError: All of the tissue has one colour, or one of the stains is absent.
        """
        density = od_table()[stained] - density_of(white)
        source = self.stains(density)
        strengths = np.percentile(_coordinates(source, density)[:2], self.percentile, axis=1)
        if (strengths < np.array(self.strengths) * LEAST_STRENGTH).any():
            seen = " and ".join(f"{strength:.3g}" for strength in strengths)
            fact = (
                f"{self.name}: one of the two stains is absent among {len(stained)} stained pixels (strengths {seen})"
            )
            raise StainError(fact, hint=CURE)
        return {"stains": source, "strengths": strengths}

    def transform(self, estimate: Estimate) -> OdTransform:
        """One matrix: unmix, scale, mix with the reference's colours, on its glass; :meth:`SlideStain.transform`."""
        source, strengths = estimate.numbers["stains"], estimate.numbers["strengths"]
        stronger = np.array(self.strengths) / strengths
        scale = np.append(stronger, kept_residual(stronger) if self.residual == "keep" else 0.0)
        target = np.array([self.haematoxylin, self.eosin])
        matrix = _with_residual(target) @ np.diag(scale) @ np.linalg.inv(_with_residual(source))
        r, g, b = (density_of(self.glass) - matrix @ density_of(estimate.white)).tolist()
        rows = tuple(tuple(row) for row in matrix.tolist())
        return OdTransform(matrix=rows, offset=(r, g, b), state=estimate.state)

    def towards(self, reference: Estimate) -> Self:
        """See :meth:`SlideStain.towards`."""
        (h, e), strengths = reference.numbers["stains"], rounded(reference.numbers["strengths"])
        return replace(
            self,
            haematoxylin=_vector(h),
            eosin=_vector(e),
            strengths=(strengths[0], strengths[1]),
            glass=self.glass_of(reference),
            target="",
        )

    @abstractmethod
    def stains(self, stained: Array) -> Array:
        """Unit vectors (2, 3) of haematoxylin and eosin.

        Args:
            stained: Optical densities (n, 3) of stained pixels.

        Raises:
            StainError: They have one colour.
        """


def kept_residual(stronger: Array) -> float:
    """Factor of the residual: that of the stain that is weakened most, and 1 where none is.

    Beside stains that are made weaker a residual that stays as it is would come to the fore. In a dark photograph,
    whose stains shrink to a fifth, blood, a tint of the lamp, and nuclei of which a channel is clipped at 0 turn green
    or violet. Made stronger it would be noise made stronger.

    Args:
        stronger: Factors of the two stains (2,).
    """
    return min(1.0, float(stronger.min()))


def _vector(values: Array) -> Vector:
    r, g, b = rounded(values / np.linalg.norm(values))
    return r, g, b


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
