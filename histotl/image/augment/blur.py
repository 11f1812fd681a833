"""Out of focus: scanners lose the plane of the tissue here and there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.image._random import uniform
from histotl.image.augment._ranges import check_range

_STREAM = 5
_REACH = 3.0


@register("augment", "blur")
@dataclass(frozen=True, kw_only=True)
class Blur:
    """Gaussian blur of random width in each tile; the border is mirrored.

    Args:
        max_sigma_px: The standard deviation is 0 to this many tile pixels, all widths equally likely; 0 to 16.
    """

    max_sigma_px: float = 1.5

    def __post_init__(self) -> None:
        check_range("blur", "max_sigma_px", self.max_sigma_px, 0, 16)

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Blur uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        # Weights are worked out on the host, one tile after the other: vectors of exponentials would differ in their
        # last bit by the length of the batch.
        sigmas = (uniform(seeds.cpu(), 1, stream=_STREAM)[:, 0].double() * self.max_sigma_px).tolist()
        reach = min(math.ceil(_REACH * self.max_sigma_px), min(tiles.shape[1:3]) - 1)
        weights = torch.tensor([_weights(sigma, reach) for sigma in sigmas], dtype=torch.float32)
        weights = weights.reshape(len(sigmas), reach + 1).to(tiles.device)
        out = torch.empty_like(tiles)
        for i in range(len(tiles)):  # a tile at a time stays in the processor's cache
            image = tiles[i].to(torch.float32)
            out[i] = _along(_along(image, weights[i], 0), weights[i], 1).add_(0.5).clamp_(0, 255).to(torch.uint8)
        return out


def _weights(sigma: float, reach: int) -> list[float]:
    """Of the middle and of each distance up to the reach; both sides together give 1."""
    raw = [math.exp(-((k / sigma) ** 2) / 2) if sigma > 1e-3 else float(k == 0) for k in range(reach + 1)]
    total = 2 * math.fsum(raw) - raw[0]
    return [value / total for value in raw]


def _along(image: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    """Weighted sums of neighbours along an axis of (h, w, 3), mirrored without repeating the border."""
    reach, side = len(weights) - 1, image.shape[axis]
    places = torch.arange(-reach, side + reach, device=image.device).abs()
    wide = image.index_select(axis, torch.minimum(places, 2 * (side - 1) - places))
    total = wide.narrow(axis, reach, side) * weights[0]
    for k in range(1, reach + 1):
        total += (wide.narrow(axis, reach - k, side) + wide.narrow(axis, reach + k, side)) * weights[k]
    return total
