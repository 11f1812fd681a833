"""Air bubbles under the cover slip, by their edges.

Light is bent away at the edge of air, which shows as a dark rim without a colour (Janowczyk et al., "HistoQC", JCO
Clinical Cancer Informatics 2019, train a classifier on it). Stained structure is as dark but coloured: it lets blue
light through. So a dark line is looked for whose contrast to both of its sides is the same in all three channels.
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
from histotl.image._od import Array
from histotl.image._tile_view import TileView

_ANGLES = 8
_HALF_UM = 5.0
_AWAY_UM = 15.0
"""Half the width of the line and of the strips beside it, and how far away those are."""

_TOP = 0.02
"""Share of the tile that a rim takes at least."""


@register("quality", "bubble")
@dataclass(frozen=True, kw_only=True)
class Bubble:
    """Optical density by which the darkest colourless line stands out of both of its sides; 0 without any.

    NaN on tiles that are smaller than the line.

    Args:
        mpp: Pixel size in µm at which it is measured.
        length_um: Length of the line in µm: bubbles that are wider are straight for as long.
    """

    columns: ClassVar[tuple[str, ...]] = ("bubble",)

    mpp: float = 4.0
    length_um: float = 48.0

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.length_um >= 2 * self.mpp):
            fact = f"bubble: mpp is {self.mpp} and length_um {self.length_um}"
            raise UsageError(fact, hint="give a pixel size above 0 and a line of two pixels or more")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        planes = torch.stack(list(view.densities(self.mpp)), dim=1)
        b, _, h, w = planes.shape
        lines = _lines(view.pixel_um(self.mpp), self.length_um, planes.device)
        if min(h, w) < lines.shape[-1]:
            return planes.new_full((b, 1), torch.nan)
        with torch.autocast(planes.device.type, enabled=False):
            contrast = torch.nn.functional.conv2d(planes.view(3 * b, 1, h, w), lines)
        contrast = contrast.view(b, 3, _ANGLES, 2, -1).amin(3)
        # Twice the least less the greatest: what has a colour counts little, and what has much of one not at all.
        plain = 2 * contrast.amin(1) - contrast.amax(1)
        best = plain.amax(1)
        top = best.topk(max(1, round(_TOP * best.shape[1])), dim=1).values
        return top.mean(1, keepdim=True).clamp(min=0)


@cache
def _lines(mpp: float, length_um: float, device: torch.device) -> torch.Tensor:
    """Weights (angles * 2, 1, k, k): for each angle, the mean over a line less that of the strip on one side of it."""
    reach = math.ceil(length_um / 2 / mpp)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] * mpp
    weights = []
    for angle in range(_ANGLES):
        c, s = math.cos(math.pi * angle / _ANGLES), math.sin(math.pi * angle / _ANGLES)
        along, across = x * c + y * s, y * c - x * s
        line, left, right = (
            _strip(across, middle, half, mpp) * (np.abs(along) <= length_um / 2)
            for middle, half in ((0.0, _HALF_UM), (-_AWAY_UM, _HALF_UM), (_AWAY_UM, _HALF_UM))
        )
        weights += [line / line.sum() - side / side.sum() for side in (left, right)]
    with torch.inference_mode(mode=False):
        return torch.from_numpy(np.stack(weights)[:, None]).to(device=device, dtype=torch.float32)


def _strip(across: Array, middle: float, half: float, mpp: float) -> Array:
    """Share of each pixel that lies within ``half`` of ``middle``."""
    low, high = across - (middle - half), (middle + half) - across
    return np.asarray(np.clip(low / mpp + 0.5, 0, 1) * np.clip(high / mpp + 0.5, 0, 1), dtype=np.float64)
