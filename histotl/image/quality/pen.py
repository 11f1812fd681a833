"""Felt-pen ink on the glass; see :mod:`histotl.image._ink`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._ink import BLUE_GREEN, inks
from histotl.image._tile_view import TileView


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
    least: float = BLUE_GREEN

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.least > 0):
            fact = f"pen: mpp is {self.mpp} and least {self.least}"
            raise UsageError(fact, hint="give a pixel size and a density above 0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        found = inks(view.densities(self.mpp), least=self.least).flatten(1, 2).float().mean(1)
        return torch.cat([found.sum(1, keepdim=True), found], dim=1)
