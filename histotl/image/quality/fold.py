"""Folds: bands in which the section lies double.

Density doubles in a fold, which is what saturation and darkness show that others threshold (Palokangas et al.,
"Segmentation of folds in tissue section images", IEEE EMBC 2007; Kothari et al., "Eliminating tissue-fold artifacts in
histopathological whole-slide images", JBHI 2013). Crowded nuclei are as dark; but folds are straight for tens of µm,
and no straight line through glands stays on nuclei. So densities are averaged along lines in all directions (a Radon
transform), and the densest band is compared with the tile's own tissue and with what lies on either side of it.

Two things tell it from fibres and horny layers, which are dense and straight too. Section on section doubles both
stains, so a fold is dense in red, green and blue light alike: the channel that says least is believed. And it lays dark
on dark: squares of densities are averaged, in which that counts most.
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
_FAINT = 0.05
"""A channel in which tissue is hardly denser than glass, or which the camera clipped, says nothing."""

_LEAST_TISSUE = 0.05
_TOO_SHORT = -1.0


@register("quality", "fold")
@dataclass(frozen=True, kw_only=True)
class Fold:
    """Density of the densest straight band and its excess over both sides, over that of the tile's tissue.

    The root of the sum of the squares. Even tissue has 1, glands 1.5, folds 1.9 to 2.4. A tile that lies in a fold as a
    whole has 1 too: compare its mean densities with the slide's. NaN where there is hardly any tissue.

    Args:
        mpp: Pixel size in µm at which it is measured.
        width_um: Width of the band in µm.
    """

    columns: ClassVar[tuple[str, ...]] = ("fold",)

    mpp: float = 4.0
    width_um: float = 20.0

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.width_um > 0):
            fact = f"fold: mpp is {self.mpp} and width_um {self.width_um}"
            raise UsageError(fact, hint="give numbers above 0")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        density = torch.stack(list(view.densities(self.mpp)), dim=1)
        b, _, h, w = density.shape
        width = max(1, round(self.width_um / view.pixel_um(self.mpp)))
        if min(h, w) < 3 * width:
            return density.new_full((b, 1), torch.nan)
        pixels = density.flatten(2)
        tissue = (pixels[:, 1:2] > _GLASS).float()
        share = tissue.mean(2)
        usual = (pixels * tissue).mean(2) / share
        relative = pixels / usual[..., None]
        relative = torch.where(usual[..., None] > _FAINT, relative, relative[:, 1:2]).square_()
        places, length, too_short = _lines(h, w, density.device)
        # One pixel more, of no density, stands for all that lies outside; one long selection is the fastest way.
        padded = torch.nn.functional.pad(relative, (0, 1)).view(3 * b, -1)
        along = padded.index_select(1, places).view(3 * b, *length.shape, -1).sum(3) / length + too_short
        bands = torch.nn.functional.avg_pool1d(along, width, stride=1)
        # The bands beside one begin half its width away from it.
        away = min(width + (width + 1) // 2, (bands.shape[2] - 1) // 2)
        middle, sides = bands[:, :, away:-away], torch.maximum(bands[:, :, : -2 * away], bands[:, :, 2 * away :])
        excess = torch.where(sides > _TOO_SHORT, middle - sides, torch.zeros_like(sides))
        # The least of the three channels, at the place where that is most.
        densest, stands_out = (of.view(b, 3, -1).amin(1).amax(1, keepdim=True) for of in (bands, excess))
        found = (densest + stands_out.clamp(min=0)).sqrt()
        return torch.where(share >= _LEAST_TISSUE, found, torch.nan)


@cache
def _lines(h: int, w: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels on parallel lines.

    Returns:
        Places in the flattened tile, line after line, those outside of it one beyond its end; pixels of each line,
        (angles, lines); and what is far below 0 for lines that are too short, so that no band has one.
    """
    size = min(h, w)
    steps = np.arange(size) - (size - 1) / 2
    places, lengths, short = [], [], []
    for angle in range(_ANGLES):
        c, s = math.cos(math.pi * angle / _ANGLES), math.sin(math.pi * angle / _ANGLES)
        y = (h - 1) / 2 + steps[:, None] * c + steps[None] * s
        x = (w - 1) / 2 - steps[:, None] * s + steps[None] * c
        inside = (np.abs(y - (h - 1) / 2) < h / 2) & (np.abs(x - (w - 1) / 2) < w / 2)
        row, col = np.clip(np.rint(y), 0, h - 1), np.clip(np.rint(x), 0, w - 1)
        length = inside.sum(1)
        places.append(np.where(inside, row * w + col, h * w).astype(np.int64))
        lengths.append(np.maximum(length, 1))
        short.append(np.where(length < _SHORTEST * size, 1e4 * _TOO_SHORT, 0.0))
    with torch.inference_mode(mode=False):
        index = torch.from_numpy(np.stack(places).ravel()).to(device)
        count, far = (torch.from_numpy(np.stack(part)).to(device, torch.float32) for part in (lengths, short))
        return index, count, far
