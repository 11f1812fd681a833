"""Histogram matching, fitted once a slide.

Each channel's levels are moved so that the quantiles of the tissue become those of a reference (Gonzalez and Woods,
Digital Image Processing, "histogram specification"). The change is a monotone table a channel: it can follow any
brightness curve of a scanner, and knows nothing of stains, so a slide with more of one kind of tissue is recoloured
for it. White, the slide's own where it is known, becomes the reference's, and black stays black.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from histotl.core.errors import StainError, UsageError
from histotl.core.registry import register
from histotl.image._od import CURE, IO, Array
from histotl.image._slide_stain import SlideStain, rounded
from histotl.image._transforms import LevelTransform
from histotl.image.estimate import Estimate, Numbers

Levels = tuple[float, ...]

QUANTILES = (0.5, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 98.0, 99.5)
"""Percentiles whose levels describe a channel."""

_RED = (80.0, 98.0, 114.0, 130.0, 150.0, 164.0, 175.0, 184.0, 193.0, 201.0, 210.0, 220.0, 228.0, 235.0, 243.0)
_GREEN = (33.0, 46.0, 59.0, 71.0, 87.0, 99.0, 110.0, 120.0, 131.0, 143.0, 156.0, 173.0, 185.0, 195.0, 204.0)
_BLUE = (86.0, 99.0, 111.0, 122.0, 136.0, 146.0, 155.0, 164.0, 172.0, 182.0, 192.0, 204.0, 212.0, 218.0, 223.0)

_LEAST_RANGE = 4.0
"""Levels between the outer quantiles of a channel; a flatter one has no shape to match."""


@register("stain", "histogram")
@dataclass(frozen=True, kw_only=True)
class Histogram(SlideStain):
    """Moves the quantiles of a slide's R, G and B to reference ones.

    Args:
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        white: What density is measured against: the colour of the ``slide``'s own glass, where its tiles show enough of
            it (where they do not, the file says why, and it is 255), or 255 in each channel, as published.
        target: Where the reference comes from, if not from the numbers below: a slide, an image, a saved state
            (JSON), or ``cohort`` for the median of the run's slides.
        fallback: What becomes of a slide whose histogram cannot be told: ``fail`` it, ``skip`` its normalisation, or
            take the ``cohort``'s.
        red: Reference levels of red over tissue at the 15 percentiles of :data:`QUANTILES`: the rounded average of four
            colorectal H&E fields of TCGA and NCT-CRC.
        green: The same of green.
        blue: The same of blue.
        glass: Reference colour of glass as R, G, B levels, which the others are measured against.
    """

    red: Levels = _RED
    green: Levels = _GREEN
    blue: Levels = _BLUE

    def __post_init__(self) -> None:
        for name, levels in (("red", self.red), ("green", self.green), ("blue", self.blue)):
            if len(levels) != len(QUANTILES) or (np.diff(levels) < 0).any() or min(levels) < 0 or max(levels) > 255:
                cure = f"give {len(QUANTILES)} levels of 0 to 255 that do not fall"
                raise UsageError(f"histogram: {name} is {levels}", hint=cure)
        super().__post_init__()

    def measure(self, stained: npt.NDArray[np.uint8], white: Array) -> Numbers:
        """Quantiles of the levels; see :meth:`SlideStain.measure`."""
        levels = np.minimum(_against(np.percentile(stained, QUANTILES, axis=0), white).T, 255.0)
        flat = (levels[:, -1] - levels[:, 0]).min()
        if flat < _LEAST_RANGE:
            fact = f"histogram: {len(stained)} stained pixels have one flat colour (a channel spans {flat:.0f} levels)"
            raise StainError(fact, hint=CURE)
        return {"levels": np.asarray(levels, np.float64)}

    def transform(self, estimate: Estimate) -> LevelTransform:
        """Tables that take the slide's quantiles to the reference's, straight lines between them."""
        tables = [
            _table(*given)
            for given in zip(
                estimate.numbers["levels"],
                np.array((self.red, self.green, self.blue)),
                estimate.white,
                np.array(self.glass),
                strict=True,
            )
        ]
        return LevelTransform(tables=(tables[0], tables[1], tables[2]), state=estimate.state)

    def towards(self, reference: Estimate) -> Self:
        """See :meth:`SlideStain.towards`."""
        red, green, blue = (rounded(levels) for levels in reference.numbers["levels"])
        return replace(self, red=red, green=green, blue=blue, glass=self.glass_of(reference), target="")


def _against(levels: Array, white: Array) -> Array:
    """Levels as they would be if white were 255."""
    moved: Array = (levels + 1) * (IO / (white + 1)) - 1
    return moved


def _table(source: Array, target: Array, white: Array, glass: Array) -> tuple[float, ...]:
    """What each of the 256 levels becomes, before rounding.

    Args:
        source: The slide's quantiles, against white.
        target: The reference's, against its own.
        white: Level of the slide's white.
        glass: Of the reference's.
    """
    # Of quantiles at one level the middle one counts: all pixels there become one level.
    at, group = np.unique(source, return_inverse=True)
    middle = np.array([np.median(target[group == number]) for number in range(len(at))])
    inner = (at > 0) & (at < 255)
    x = np.concatenate([[0.0], at[inner], [255.0]])
    y = np.concatenate([[0.0], middle[inner], [255.0]])
    level = _against(np.arange(256.0), white)
    # What is brighter than the slide's white is by as much brighter than the reference's.
    moved = np.interp(level, x, y) + np.maximum(level - 255, 0)
    return tuple(np.clip((moved + 1) * ((glass + 1) / IO) - 1, 0, 255).tolist())
