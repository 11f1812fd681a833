"""Bare glass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView


@register("quality", "blank")
@dataclass(frozen=True, kw_only=True)
class Blank:
    """Share of the tile that is bare glass, 0 to 1.

    Args:
        mpp: Pixel size in µm at which it is measured.
        density: Highest optical density (natural logarithm) of glass in any channel; 0.2 is a level of 209.
    """

    columns: ClassVar[tuple[str, ...]] = ("blank",)

    mpp: float = 2.0
    density: float = 0.2

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.density > 0):
            fact = f"blank: mpp is {self.mpp} and density {self.density}"
            raise UsageError(fact, hint="give a pixel size and a density above 0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        red, green, blue = view.densities(self.mpp)
        darkest = torch.maximum(torch.maximum(red, green), blue)
        return (darkest < self.density).float().mean((1, 2))[:, None]
