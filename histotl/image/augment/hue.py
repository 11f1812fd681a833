"""Another tint: the same tissue under another lamp, sensor or batch of dye."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.image._planes import Planes, map_planes
from histotl.image._random import uniform
from histotl.image.augment._ranges import check_range

_STREAM = 4


@register("augment", "hue")
@dataclass(frozen=True, kw_only=True)
class Hue:
    """Random hue and saturation of each tile, in HSV; greys, white among them, have no hue and stay.

    Args:
        max_deg: Hue is turned by up to so many degrees of its circle, either way; 0 to 180.
        saturation: Saturation is multiplied by 1 - saturation to 1 + saturation; 0 to 1.
    """

    max_deg: float = 10.0
    saturation: float = 0.2

    def __post_init__(self) -> None:
        check_range("hue", "max_deg", self.max_deg, 0, 180)
        check_range("hue", "saturation", self.saturation, 0, 1)

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Tint uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        draw = uniform(seeds.to(tiles.device), 2, stream=_STREAM) * 2 - 1
        turn, factor = self.max_deg / 60 * draw[:, :1], 1 + self.saturation * draw[:, 1:]

        def tint(planes: Planes, rows: slice) -> Planes:
            red, green, blue = (plane.to(torch.float32) for plane in planes)
            value = torch.maximum(torch.maximum(red, green), blue)
            chroma = value - torch.minimum(torch.minimum(red, green), blue)
            hue = _sextant(red, green, blue, value, chroma) + turn[rows]
            chroma = torch.minimum(chroma * factor[rows], value)
            # Each channel is the value less the chroma times a ramp over the circle (Smith 1978, in closed form).
            return [value - chroma * _ramp(hue + start) + 0.5 for start in (5.0, 3.0, 1.0)]

        return map_planes(tiles, tint)


def _sextant(
    red: torch.Tensor, green: torch.Tensor, blue: torch.Tensor, value: torch.Tensor, chroma: torch.Tensor
) -> torch.Tensor:
    """Hue in sixths of the circle, -1 to 5; 0 for greys."""
    divisor = chroma.clamp_min(1)  # levels are whole numbers: a chroma below 1 is 0, and so are the differences
    by_red, by_green, by_blue = green - blue, blue - red, red - green
    hue = torch.where(value == green, 2 + by_green / divisor, 4 + by_blue / divisor)
    return torch.where(value == red, by_red / divisor, hue)


def _ramp(place: torch.Tensor) -> torch.Tensor:
    """Share of the chroma that a channel lacks, 0 to 1, for its place on the circle of six."""
    place = torch.remainder(place, 6)
    return torch.minimum(place, 4 - place).clamp(0, 1)
