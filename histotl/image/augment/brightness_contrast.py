"""Brighter and darker, flatter and harder: scanners differ in lamp, exposure and gamma."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.image._planes import Planes, map_planes
from histotl.image._random import uniform
from histotl.image.augment._ranges import check_range

_STREAM = 3


@register("augment", "brightness_contrast")
@dataclass(frozen=True, kw_only=True)
class BrightnessContrast:
    """Random brightness and contrast of each tile; contrast leaves the tile's mean level where it is.

    Args:
        brightness: Levels are shifted by up to this share of the full range, either way; 0 to 1.
        contrast: Distances from the mean are multiplied by 1 - contrast to 1 + contrast; 0 to 1.
    """

    brightness: float = 0.1
    contrast: float = 0.2

    def __post_init__(self) -> None:
        check_range("brightness_contrast", "brightness", self.brightness, 0, 1)
        check_range("brightness_contrast", "contrast", self.contrast, 0, 1)

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Change uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        draw = uniform(seeds.to(tiles.device), 2, stream=_STREAM) * 2 - 1
        factor = 1 + self.contrast * draw[:, 1:]
        # Of whole numbers the sum is exact in any order, so the mean does not depend on how it is split up.
        mean = (tiles.sum((1, 2, 3), dtype=torch.int64) / max(1, tiles[0:1].numel())).to(torch.float32)[:, None]
        shift = mean - mean * factor + 255 * self.brightness * draw[:, :1] + 0.5

        def change(planes: Planes, rows: slice) -> Planes:
            return [plane.to(torch.float32) * factor[rows] + shift[rows] for plane in planes]

        return map_planes(tiles, change)
