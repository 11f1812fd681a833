"""JPEG blocks: steps at every eighth pixel.

After Wang, Bovik and Evans, "Blind measurement of blocking artifacts in images", ICIP 2000, in the pixel domain: mean
differences across block borders over those inside. A tile may begin anywhere in the file's grid of blocks, so all eight
phases are looked at and the one with the largest steps counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.registry import register
from histotl.image._tile_view import TileView

_BLOCK = 8
_LEAST = 0.05
"""Mean second difference in levels under which a tile is flat."""


@register("quality", "blockiness")
@dataclass(frozen=True, kw_only=True)
class Blockiness:
    """Steps across the borders of JPEG blocks over those inside; 1 without blocks.

    The tiles are looked at as they are, whatever their pixel size: blocks are made of the file's pixels, and of those
    of a tile only where it was read without a change of scale. NaN on flat tiles and those under 32 pixels.
    """

    columns: ClassVar[tuple[str, ...]] = ("blockiness",)

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        b, h, w, _ = view.tiles.shape
        if min(h, w) < 4 * _BLOCK:
            return torch.full((b, 1), torch.nan, device=view.tiles.device)
        # Every second line across the steps is enough, and takes half the time.
        down, right = view.tiles[:, :, ::2, 1].float(), view.tiles[:, ::2, :, 1].float()
        return torch.minimum(_steps(down, 1), _steps(right, 2))[:, None]


def _steps(plane: torch.Tensor, axis: int) -> torch.Tensor:
    """Largest over mean step (b,) along an axis, of the eight phases that the grid can have."""
    # Differences of differences: a slope has none, a step that the blocks make has them on both of its sides.
    first = plane.diff(dim=axis)
    profile = first.diff(dim=axis).abs_().mean(3 - axis)
    # A step between pixels i and i + 1 shows in the second differences i - 1 and i.
    pairs = profile[:, :-1] + profile[:, 1:]
    whole = pairs[:, : pairs.shape[1] // _BLOCK * _BLOCK].view(len(plane), -1, _BLOCK).mean(1)
    largest = whole.amax(1)
    # Neighbouring phases share one difference of the step, so the rest is taken where there is none.
    rest = whole.sort(dim=1).values[:, : _BLOCK - 3].mean(1)
    return torch.where(rest > 2 * _LEAST, largest / rest, torch.nan)
