"""Felt-pen ink on the glass, by colour.

Inks absorb where no stain of tissue does: blue and green ones take more red light than green (haematoxylin, the bluest
stain, has 0.65 to 0.70 in Ruifrok & Johnston 2001), red ones take green and blue light and hardly any red, black ones
take all alike. So differences of optical density between channels tell them apart, where HistoQC's pen filters look at
levels (Janowczyk et al., JCO Clinical Cancer Informatics 2019). Strokes are wide and nuclei and red cells are small, so
a coarse picture is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView

_INK = 0.2
"""Density that blue and green inks have at least in green light."""

_RED = 0.75
"""Density that red ink adds to green and blue beyond red: red cells stay below 0.6 and eosin below 0.5."""

_BLACK = 1.5
"""Density of black ink in every channel; over crowded nuclei blue light is still let through."""


@register("quality", "pen")
@dataclass(frozen=True, kw_only=True)
class Pen:
    """Share of the tile under ink, 0 to 1: all inks, and blue, green (to turquoise), red and black apart.

    Args:
        mpp: Pixel size in µm at which it is measured.
        least: Optical density (natural logarithm) by which red is darker than green under blue and green ink.
    """

    columns: ClassVar[tuple[str, ...]] = ("pen", "pen_blue", "pen_green", "pen_red", "pen_black")

    mpp: float = 4.0
    least: float = 0.22

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.least > 0):
            fact = f"pen: mpp is {self.mpp} and least {self.least}"
            raise UsageError(fact, hint="give a pixel size and a density above 0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        red, green, blue = view.densities(self.mpp)
        beyond, middle = red - green, blue - green
        # Tints are differences too: in dark places a small share of the density, on glass without any of green light.
        cold = (beyond > self.least) & (beyond > 0.15 * red) & (green > _INK)
        # Turquoise marking ink takes blue light as green light, blue ink takes much less of it.
        is_green = cold & (middle > -0.3 * beyond)
        is_blue = cold & ~is_green
        warm = torch.minimum(green, blue)
        is_red = (warm - red > _RED) & (red < 0.35 * warm)
        darkest = torch.maximum(torch.maximum(red, green), blue)
        least = torch.minimum(red, warm)
        is_black = (least > _BLACK) & (darkest - least < 0.3 * darkest) & ~cold
        inks = torch.stack([is_blue, is_green, is_red, is_black], dim=1).flatten(2).float().mean(2)
        return torch.cat([inks.sum(1, keepdim=True), inks], dim=1)
