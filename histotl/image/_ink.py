"""Felt-pen ink by its colour.

Inks absorb where no stain of tissue does: blue and green ones take more red light than green (haematoxylin, the bluest
stain, has 0.65 to 0.70 in Ruifrok & Johnston 2001), red ones take green and blue light and hardly any red, black ones
take all alike. So differences of optical density between channels tell them apart, where HistoQC's pen filters look at
levels (Janowczyk et al., JCO Clinical Cancer Informatics 2019). Strokes are wide and nuclei and red cells are small, so
a coarse picture is looked at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from histotl.image._od import IO
from histotl.image._planes import Planes

BLUE_GREEN = 0.22
"""Density (natural logarithm) by which red is darker than green under blue and green ink."""

_INK = 0.2
"""Density that blue and green inks have at least in green light."""

_RED = 0.75
"""Density that red ink adds to green and blue beyond red: red cells stay below 0.6 and eosin below 0.5."""

_BLACK = 1.5
"""Density of black ink in every channel; over crowded nuclei blue light is still let through."""

_CELL_PX = 8
"""Pixels are looked at in squares of this side, 4 µm at half a µm a pixel."""


def inks(density: Planes, *, least: float = BLUE_GREEN) -> torch.Tensor:
    """Where which ink is.

    Args:
        density: Optical densities (natural logarithm) of R, G and B, of one shape; of a picture with pixels of some µm.
        least: By which red is darker than green under blue and green ink.

    Returns:
        bool (…, 4) of blue, green (to turquoise), red and black ink; a pixel has one of them at most.
    """
    red, green, blue = density
    beyond, middle = red - green, blue - green
    # Tints are differences too: in dark places a small share of the density, on glass without any of green light.
    cold = (beyond > least) & (beyond > 0.15 * red) & (green > _INK)
    # Turquoise marking ink takes blue light as green light, blue ink takes much less of it.
    is_green = cold & (middle > -0.3 * beyond)
    is_blue = cold & ~is_green
    warm = torch.minimum(green, blue)
    is_red = (warm - red > _RED) & (red < 0.35 * warm)
    darkest = torch.maximum(torch.maximum(red, green), blue)
    lightest = torch.minimum(red, warm)
    is_black = (lightest > _BLACK) & (darkest - lightest < 0.3 * darkest) & ~cold
    return torch.stack([is_blue, is_green, is_red, is_black], dim=-1)


def under_ink(tiles: torch.Tensor) -> torch.Tensor:
    """Pixels of strokes of ink and right beside them.

    Args:
        tiles: uint8 RGB (n, h, w, 3), of a pixel size that tissue is looked at in (0.2 to 1 µm).

    Returns:
        bool (n, h, w).
    """
    _, h, w, _ = tiles.shape
    levels = F.avg_pool2d(tiles.permute(0, 3, 1, 2).float(), _CELL_PX, ceil_mode=True, count_include_pad=False)
    density = ((levels + 1) / IO).log_().neg_()
    found = inks(density.unbind(1)).any(-1).float()
    # A cell on the border of a stroke is ink in part.
    wide = F.max_pool2d(found[:, None], 3, stride=1, padding=1)[:, 0] > 0
    return wide.repeat_interleave(_CELL_PX, 1).repeat_interleave(_CELL_PX, 2)[:, :h, :w]
