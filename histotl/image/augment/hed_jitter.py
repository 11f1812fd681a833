"""Stain jitter: every tile as if stained a little differently.

Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference…", IEEE TMI 2018: the
haematoxylin, eosin and residual densities of Ruifrok & Johnston (2001) are each scaled and shifted at random. Densities
are natural logarithms here, so ``bias`` has the same unit on every machine and for every library.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image import _device, _host
from histotl.image._od import Array, densities, mix
from histotl.image._planes import Planes, map_planes
from histotl.image._random import uniform

_STREAM = 2

# Rows: haematoxylin, eosin, DAB (Ruifrok & Johnston 2001, table 2), as R, G, B densities.
RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@register("augment", "hed_jitter")
@dataclass(frozen=True, kw_only=True)
class HedJitter:
    """Random strength and offset of haematoxylin, eosin and residual in each tile (Tellez 2018).

    Args:
        sigma: Concentrations are multiplied by 1 - sigma to 1 + sigma; 0 up to, not including, 1.
        bias: Densities of -bias to +bias are added to each stain; 0.05 darkens white by up to 13 levels.
    """

    sigma: float = 0.05
    bias: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < 1:
            raise UsageError(f"hed_jitter: sigma is {self.sigma}", hint="give a number from 0 to below 1, such as 0.05")
        if not self.bias >= 0:
            raise UsageError(f"hed_jitter: bias is {self.bias}", hint="give a number of 0 or more, such as 0.05")

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Restain uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        draw = uniform(seeds.to(tiles.device), 6, stream=_STREAM) * 2 - 1
        stains, unmix = (torch.from_numpy(m).to(draw) for m in _matrices())
        # (b, 3, 3): unmix, scale each stain, mix again. Sums, not matrix products: those go half under autocast.
        scaled = stains.T[None] * (1 + self.sigma * draw[:, None, :3])
        matrix = (scaled[:, :, :, None] * unmix.T[None, None]).sum(2)
        offset = (stains.T[None] * (self.bias * draw[:, None, 3:])).sum(2)

        if _host.is_host(tiles):
            return _host.restained(tiles, matrix.double().numpy(), offset.double().numpy())
        if _device.has_kernels(tiles):
            return _device.restained_each(tiles, matrix, offset)

        def restain(planes: Planes, rows: slice) -> Planes:
            density, weights, added = densities(planes), matrix[rows], offset[rows]
            return [mix(density, tuple(weights[:, r, c, None] for c in range(3)), added[:, r, None]) for r in range(3)]

        return map_planes(tiles, restain)


@cache
def _matrices() -> tuple[Array, Array]:
    """Unit stain vectors as rows, and the inverse: ``density = concentration @ stains``."""
    stains: Array = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
    return stains, np.asarray(np.linalg.inv(stains), dtype=np.float64)
