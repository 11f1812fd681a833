"""Macenko stain normalisation, fitted once a slide.

Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. The plane of the two
stains is found by a singular value decomposition of the optical densities, the stains are the robust extremes of angle
in it, and every slide's stains and strengths are moved to those of a reference.

All of that is linear in optical density, so a fitted slide is one 3 x 3 matrix and is applied as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._od import Array
from histotl.image._two_stains import TwoStains, haematoxylin_first, refuse_one_colour


@register("stain", "macenko")
@dataclass(frozen=True, kw_only=True)
class Macenko(TwoStains):
    """Moves a slide's haematoxylin and eosin to reference colours and strengths (Macenko 2009).

    Args:
        alpha: Percentile of angle taken as the extreme, robust against outliers; 0 to 50, exclusive of 50.
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        white: What density is measured against: the colour of the ``slide``'s own glass, where its tiles show enough of
            it (where they do not, the file says why, and it is 255), or 255 in each channel, as published.
        target: Where the reference comes from, if not from the numbers below: a slide, an image, a saved state
            (JSON), or ``cohort`` for the median of the run's slides.
        fallback: What becomes of a slide whose stain cannot be told: ``fail`` it, ``skip`` its normalisation, or
            take the ``cohort``'s stain for its own.
        percentile: Percentile of a stain's concentration that counts as its strength.
        residual: The part of a colour that no mixture of the two stains makes (blood, pigment, pen): ``keep`` it,
            weaker where a stain becomes weaker and never stronger, or ``drop`` it, as the paper does.
        haematoxylin: Reference colour of haematoxylin as R, G, B optical densities; the one that the authors published
            with their code.
        eosin: The same of eosin.
        strengths: Reference concentrations of haematoxylin and eosin at ``percentile``; likewise.
        glass: Reference colour of glass as R, G, B levels.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 50:
            raise UsageError(f"macenko: alpha is {self.alpha}", hint="give a percentile of 0 to below 50, as 1.0")
        super().__post_init__()

    def stains(self, stained: Array) -> Array:
        """Robust extremes of angle in the plane of the two stains; see :meth:`TwoStains.stains`."""
        # The right singular vectors are the eigenvectors of this 3 x 3 matrix, without an SVD of a million rows.
        _, vectors = np.linalg.eigh(stained.T @ stained)
        plane = vectors[:, :0:-1].T
        flat = stained @ plane.T
        # Angles are taken about the mean colour: all densities are positive, so none of them wraps around.
        middle = flat.mean(axis=0) / np.linalg.norm(flat.mean(axis=0))
        angle = np.arctan2(middle[0] * flat[:, 1] - middle[1] * flat[:, 0], flat @ middle)
        low, high = np.percentile(angle, [self.alpha, 100 - self.alpha])
        refuse_one_colour("macenko", stained, math.degrees(high - low))
        return haematoxylin_first(np.array([_turned(middle, low) @ plane, _turned(middle, high) @ plane]))


def _turned(vector: Array, angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    turned: Array = np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])
    return turned
