"""Focus by blurring again: what is blurred already loses little.

Crété, Dolmiere, Ladret and Nicolas, "The blur effect: perception and estimation with a new no-reference perceptual blur
metric", SPIE Human Vision and Electronic Imaging XII, 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView

_BOX = 9
"""Pixels that the authors average over."""


@register("quality", "focus_reblur")
@dataclass(frozen=True, kw_only=True)
class FocusReblur:
    """Sharpness: the share of local variation that one more blur takes away, 0 to 1 (Crété 2007); higher is sharper.

    Args:
        mpp: Pixel size in µm at which it is measured.
        noise: Standard deviation of a camera's noise in levels; NaN says that no structure stands out of it.
    """

    columns: ClassVar[tuple[str, ...]] = ("focus_reblur",)

    mpp: float = 1.0
    noise: float = 1.5

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.noise >= 0):
            fact = f"focus_reblur: mpp is {self.mpp} and noise {self.noise}"
            raise UsageError(fact, hint="give a pixel size above 0 and a noise of 0 or more")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        green = view.green(self.mpp)
        if min(green.shape[1:]) <= _BOX:
            return green.new_full((len(green), 1), torch.nan)
        across, down = (_lost(side, self.noise / view.scale(self.mpp)) for side in (green, green.transpose(1, 2)))
        # The authors take the blurrier direction: an edge that lies along an axis shows nothing in it.
        return torch.minimum(across, down)[:, None]


def _lost(plane: torch.Tensor, noise: float) -> torch.Tensor:
    """Share (b,) of the differences between neighbours along the last axis that a blur along it takes away."""
    # Neighbouring means over a box differ by the pixel that comes in and the one that goes out.
    before = _BOX // 2
    step = (plane[:, :, 1:] - plane[:, :, :-1])[:, :, before : 1 - _BOX + before].abs()
    blurred = (plane[:, :, _BOX:] - plane[:, :, :-_BOX]).abs_()
    lost = torch.relu_(torch.sub(step, blurred, alpha=1 / _BOX) - noise)
    total = torch.relu_(step - noise).mean((1, 2))
    return torch.where(total > noise / 4, lost.mean((1, 2)) / total, torch.nan)
