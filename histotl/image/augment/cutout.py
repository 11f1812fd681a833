"""Cutout: a piece of the tile is not there.

DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017 (arXiv 1708.04552). As
there, the square's centre lies anywhere in the tile, so that the square may reach over its border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.core.units import round_px
from histotl.image._random import uniform
from histotl.image.augment._ranges import check_range

_STREAM = 8

Fill = Literal["mean", "white"]


@register("augment", "cutout")
@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Squares of each tile are covered, each at a random place.

    Args:
        side: Side of a square as a share of the tile's, 0 to 1.
        count: Squares in a tile, 1 to 64.
        fill: What covers them: the tile's mean colour, or white, as glass is.
    """

    side: float = 0.3
    count: int = 1
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        check_range("cutout", "side", self.side, 0, 1)
        check_range("cutout", "count", self.count, 1, 64)
        if self.fill not in get_args(Fill):
            raise UsageError(f"cutout: fill is {self.fill!r}", hint=f"give one of: {', '.join(get_args(Fill))}")

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Cover parts of uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        b, h, w, _ = tiles.shape
        draw = uniform(seeds.to(tiles.device), 2 * self.count, stream=_STREAM)
        down = _within(draw[:, : self.count], h, round_px(self.side * h))
        right = _within(draw[:, self.count :], w, round_px(self.side * w))
        covered = (down[:, :, :, None] & right[:, :, None, :]).any(1)
        if self.fill == "white":
            colour = torch.full((b, 1, 1, 3), 255, dtype=torch.uint8, device=tiles.device)
        else:
            colour = (tiles.sum((1, 2), keepdim=True, dtype=torch.int64) // max(1, h * w)).to(torch.uint8)
        return torch.where(covered[..., None], colour, tiles)


def _within(draw: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """Which places of an axis each square covers, bool (b, count, size)."""
    start = (draw * size).to(torch.int64) - side // 2
    place = torch.arange(size, device=draw.device)
    return (place >= start[..., None]) & (place < start[..., None] + side)
