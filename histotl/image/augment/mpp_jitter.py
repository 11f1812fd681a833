"""Another scale: slides lie about their resolution by a few percent, and nuclei differ in size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.image._random import uniform
from histotl.image.augment._ranges import check_range

_STREAM = 7


@register("augment", "mpp_jitter")
@dataclass(frozen=True, kw_only=True)
class MppJitter:
    """Each tile as if its micrometres per pixel were a little off; the size stays, what is beyond is mirrored.

    Args:
        scale: mpp is multiplied by 1 / (1 + scale) to 1 + scale, even in logarithm; 0 to 1.
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        check_range("mpp_jitter", "scale", self.scale, 0, 1)

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Rescale uint8 RGB (b, h, w, 3) about its centre by seeds, int64 (b,)."""
        draws = (uniform(seeds.cpu(), 1, stream=_STREAM)[:, 0].double() * 2 - 1).tolist()
        out = torch.empty_like(tiles)
        for i, draw in enumerate(draws):
            factor = math.exp(draw * math.log1p(self.scale))
            image = tiles[i].to(torch.float32)
            out[i] = _along(_along(image, factor, 0), factor, 1).add_(0.5).clamp_(0, 255).to(torch.uint8)
        return out


def _along(image: torch.Tensor, factor: float, axis: int) -> torch.Tensor:
    """Resample an axis of (h, w, 3) about its middle, with weights of the two nearest pixels."""
    side = image.shape[axis]
    middle = (side - 1) / 2
    # On the host and in double precision: every device then takes the same pixels with the same weights.
    place = (torch.arange(side, dtype=torch.float64) - middle) * factor + middle
    left = place.floor()
    weight = (place - left).to(torch.float32).view([-1 if k == axis else 1 for k in range(3)]).to(image.device)
    low, high = (_mirrored(left.to(torch.int64) + k, side).to(image.device) for k in (0, 1))
    first = image.index_select(axis, low)
    return first + (image.index_select(axis, high) - first) * weight


def _mirrored(places: torch.Tensor, side: int) -> torch.Tensor:
    """Places within an axis for places that may lie up to a side beyond it."""
    if side == 1:
        return torch.zeros_like(places)
    around = torch.remainder(places, 2 * (side - 1))
    return torch.minimum(around, 2 * (side - 1) - around)
