"""Mean densities of the two stains, of colours that are fixed for all slides.

Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", Analytical and Quantitative
Cytology and Histology 2001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView


@register("quality", "stain_density")
@dataclass(frozen=True, kw_only=True)
class StainDensity:
    """Mean optical densities (natural logarithm) of haematoxylin and eosin over the tile, glass included.

    Args:
        mpp: Pixel size in µm at which they are measured.
    """

    columns: ClassVar[tuple[str, ...]] = ("haematoxylin", "eosin")

    mpp: float = 2.0

    def __post_init__(self) -> None:
        if not self.mpp > 0:
            raise UsageError(f"stain_density: mpp is {self.mpp}", hint="give a pixel size above 0, such as 2.0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        return torch.stack([plane.mean((1, 2)) for plane in view.stains(self.mpp)], dim=1)
