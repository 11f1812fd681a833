"""Colour deconvolution with fixed stain colours.

Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", Analytical and Quantitative
Cytology and Histology 2001. The colours of the two stains are those that the authors measured, or the user gives them;
only the strengths are those of the slide. For sections with too little of one stain to find its colour by, though not
without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._od import Array
from histotl.image._two_stains import MIN_ANGLE_DEG, TwoStains, Vector, angle_deg


@register("stain", "ruifrok")
@dataclass(frozen=True, kw_only=True)
class Ruifrok(TwoStains):
    """Moves the strengths of two stains of known colour to reference ones (Ruifrok 2001).

    Args:
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        white: What density is measured against: the colour of the ``slide``'s own glass, where its tiles show enough of
            it (where they do not, the file says why, and it is 255), or 255 in each channel, as published.
        target: Where the reference comes from, if not from the numbers below: a slide, an image, a saved state
            (JSON), or ``cohort`` for the median of the run's slides.
        fallback: What becomes of a slide whose stain cannot be told: ``fail`` it, ``skip`` its normalisation, or
            take the ``cohort``'s stain for its own.
        percentile: Percentile of a stain's concentration that counts as its strength.
        residual: The part of a colour that no mixture of the two stains makes: ``keep`` it, weaker where a
            stain becomes weaker and never stronger, or ``drop`` it.
        haematoxylin: Reference colour of haematoxylin as R, G, B optical densities.
        eosin: The same of eosin.
        strengths: Reference concentrations of haematoxylin and eosin at ``percentile``.
        glass: Reference colour of glass as R, G, B levels.
        source_haematoxylin: Colour of haematoxylin on the slides; the one that the authors measured.
        source_eosin: The same of eosin.
    """

    haematoxylin: Vector = (0.65, 0.70, 0.29)
    eosin: Vector = (0.07, 0.99, 0.11)
    source_haematoxylin: Vector = (0.65, 0.70, 0.29)
    source_eosin: Vector = (0.07, 0.99, 0.11)

    def __post_init__(self) -> None:
        if angle_deg(np.array([self.source_haematoxylin, self.source_eosin])) < MIN_ANGLE_DEG:
            raise UsageError("ruifrok: the stains of the slides have the same colour", hint="give two different stains")
        super().__post_init__()

    def stains(self, stained: Array) -> Array:
        """Those that were given; see :meth:`TwoStains.stains`."""
        del stained
        given = np.array([self.source_haematoxylin, self.source_eosin])
        unit: Array = given / np.linalg.norm(given, axis=1, keepdims=True)
        return unit
