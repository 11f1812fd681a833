"""Folds: bands in which the section lies double.

Density doubles in a fold, which is what saturation and darkness show that others threshold (Palokangas et al.,
"Segmentation of folds in tissue section images", IEEE EMBC 2007; Kothari et al., "Eliminating tissue-fold artifacts in
histopathological whole-slide images", JBHI 2013). Crowded nuclei are as dark; but folds are straight for tens of µm,
and no straight line through glands stays on nuclei. So densities are averaged along lines in all directions (a Radon
transform), and the densest band is compared with the tile's own tissue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView

_ANGLES = 16
_SHORTEST = 0.6
"""Least length of a line, as a share of the tile's shorter side: what cuts a corner off is no line."""

_GLASS = 0.2
_LEAST_TISSUE = 0.05


@register("quality", "fold")
@dataclass(frozen=True, kw_only=True)
class Fold:
    """Density of the densest straight band over that of the tile's tissue: 1 for none, towards 2 for a fold.

    A tile that lies in a fold as a whole has 1 too: compare its mean densities with the slide's. NaN where there is
    hardly any tissue.

    Args:
        mpp: Pixel size in µm at which it is measured.
        width_um: Width of the band in µm.
    """

    columns: ClassVar[tuple[str, ...]] = ("fold",)

    mpp: float = 8.0
    width_um: float = 24.0

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.width_um > 0):
            fact = f"fold: mpp is {self.mpp} and width_um {self.width_um}"
            raise UsageError(fact, hint="give numbers above 0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        red, green, blue = view.densities(self.mpp)
        density = (red + green + blue) / 3
        b, h, w = density.shape
        width = max(1, round(self.width_um / view.pixel_um(self.mpp)))
        if min(h, w) <= width:
            return density.new_full((b, 1), torch.nan)
        pixels = density.flatten(1)
        tissue = (pixels > _GLASS).float()
        share = tissue.mean(1)
        usual = (pixels * tissue).mean(1) / share
        places, weights = _lines(h, w, density.device)
        along = (pixels[:, places] * weights).sum(3)
        bands = torch.nn.functional.avg_pool1d(along, width, stride=1)
        densest = bands.flatten(1).amax(1)
        return torch.where(share >= _LEAST_TISSUE, densest / usual, torch.nan)[:, None]


@cache
def _lines(h: int, w: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels on parallel lines: places in the flattened tile and weights, both (angles, lines, length).

    The weights of a line add up to 1; those of a line that is too short are far below 0, so that no band has it.
    """
    size = min(h, w)
    steps = np.arange(size) - (size - 1) / 2
    places, weights = [], []
    for angle in range(_ANGLES):
        c, s = math.cos(math.pi * angle / _ANGLES), math.sin(math.pi * angle / _ANGLES)
        y = (h - 1) / 2 + steps[:, None] * c + steps[None] * s
        x = (w - 1) / 2 - steps[:, None] * s + steps[None] * c
        inside = (np.abs(y - (h - 1) / 2) < h / 2) & (np.abs(x - (w - 1) / 2) < w / 2)
        row, col = np.clip(np.rint(y), 0, h - 1), np.clip(np.rint(x), 0, w - 1)
        length = inside.sum(1, keepdims=True)
        places.append((row * w + col).astype(np.int64))
        weights.append(np.where(length >= _SHORTEST * size, inside / np.maximum(length, 1), -1.0))
    with torch.inference_mode(mode=False):
        index = torch.from_numpy(np.stack(places)).to(device)
        return index, torch.from_numpy(np.stack(weights)).to(device=device, dtype=torch.float32)
