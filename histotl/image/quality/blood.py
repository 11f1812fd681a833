"""Red cells outside their vessels or in them.

Haemoglobin takes blue and green light alike and hardly any red (Prahl, "Optical absorption of hemoglobin", Oregon
Medical Laser Center 1999); eosin takes much more green than blue. On photographs of a strong tint they come together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView


@register("quality", "blood")
@dataclass(frozen=True, kw_only=True)
class Blood:
    """Share of the tile that has the colour of red cells, 0 to 1.

    Args:
        mpp: Pixel size in µm at which it is measured; a red cell is 7 µm wide.
        least: Optical density (natural logarithm) of green and blue light beyond red.
        orange: Least density of blue light as a share of that of green light.
    """

    columns: ClassVar[tuple[str, ...]] = ("blood",)

    mpp: float = 2.0
    least: float = 0.3
    orange: float = 0.7

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.least > 0 and self.orange > 0):
            fact = f"blood: mpp is {self.mpp}, least {self.least} and orange {self.orange}"
            raise UsageError(fact, hint="give numbers above 0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        red, green, blue = view.densities(self.mpp)
        cells = (torch.minimum(green, blue) - red > self.least) & (blue > self.orange * green) & (red < 0.5 * green)
        return cells.float().mean((1, 2))[:, None]
