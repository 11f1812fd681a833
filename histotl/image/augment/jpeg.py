"""JPEG once more: archives differ in how hard their scanners compressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._random import uniform
from histotl.image.augment._ranges import check_range

_STREAM = 6


@register("augment", "jpeg")
@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """JPEG compression of random quality, colour at half resolution as scanners store it; runs on the CPU.

    Args:
        least: Lowest quality, 1 to 100; slides are stored at 70 to 90 as a rule.
        most: Highest quality, `least` to 100.
    """

    least: int = 40
    most: int = 90

    def __post_init__(self) -> None:
        check_range("jpeg", "least", self.least, 1, 100)
        check_range("jpeg", "most", self.most, 1, 100)
        if self.least > self.most:
            raise UsageError(f"jpeg: least is {self.least}, most is {self.most}", hint="give least no larger than most")

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Compress uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        import simplejpeg

        draw = uniform(seeds.cpu(), 1, stream=_STREAM)[:, 0].double()
        qualities = (self.least + draw * (self.most - self.least + 1)).to(torch.int64).tolist()
        pixels = np.ascontiguousarray(tiles.cpu().numpy())
        views = np.empty_like(pixels)
        for tile, view, quality in zip(pixels, views, qualities, strict=True):
            coded = simplejpeg.encode_jpeg(tile, quality=quality, colorsubsampling="420", fastdct=False)
            view[...] = simplejpeg.decode_jpeg(coded)
        return torch.from_numpy(views).to(tiles.device)
