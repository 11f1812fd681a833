"""A batch of tiles as quality measures look at it: shrunk pictures and densities, each made once for all measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from histotl.image._od import IO
from histotl.image._planes import Planes

# Rows: haematoxylin, eosin (Ruifrok & Johnston 2001, table 2), as R, G, B densities.
_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


_INT16_STEP = 11
"""Sums of 11 x 11 levels just fit into int16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TileView:
    """Tiles, and what several measures need of them.

    Args:
        tiles: uint8 RGB (b, h, w, 3), on any device.
        mpp: Their pixel size in µm; NaN where nobody knows it: they are then looked at as they are.
    """

    tiles: torch.Tensor
    mpp: float
    _native: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    _sums: dict[int, list[torch.Tensor]] = field(default_factory=dict, repr=False)
    _levels: dict[float, list[torch.Tensor]] = field(default_factory=dict, repr=False)
    _densities: dict[float, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def scale(self, mpp: float) -> float:
        """How many times the tiles are shrunk to come to ``mpp``; 1 where they are as coarse already."""
        wanted = mpp / self.mpp
        scale = max(1.0, wanted) if math.isfinite(wanted) else 1.0
        # Bins of whole pixels are exact sums, and several times as fast as weights.
        return float(round(scale)) if abs(scale - round(scale)) < 0.02 * scale else scale

    def pixel_um(self, mpp: float) -> float:
        """Pixel size of what is given for ``mpp``: larger where the tiles are coarser; ``mpp`` where nobody knows."""
        return max(mpp, self.mpp) if math.isfinite(self.mpp) else mpp

    def levels(self, mpp: float) -> Planes:
        """R, G and B, float32 (b, h', w') of 0 to 255, shrunk by area averaging to pixels of ``mpp`` µm.

        Coarser tiles are given as they are. The rest of a division stays out at the right and lower border.
        """
        scale = self.scale(mpp)
        if scale == 1:
            return [self._channel(c) for c in range(3)]
        if scale not in self._levels:
            step = round(scale)
            whole = scale == step and step <= min(self.tiles.shape[1:3])
            made = [s.float() / step**2 for s in self._summed(step)] if whole else _by_share(self.tiles, scale)
            self._levels[scale] = made
        return self._levels[scale]

    def green(self, mpp: float) -> torch.Tensor:
        """The green plane of :meth:`levels`, in which both stains are dark: the cheapest picture of structure."""
        return self._channel(1) if self.scale(mpp) == 1 else self.levels(mpp)[1]

    def _channel(self, channel: int) -> torch.Tensor:
        if channel not in self._native:
            self._native[channel] = self.tiles[..., channel].float()
        return self._native[channel]

    def _summed(self, step: int) -> list[torch.Tensor]:
        """Sums of step x step pixels, integers, so that going there in two steps changes nothing."""
        if step not in self._sums:
            finer = step // 2
            nested = step % 2 == 0 and finer > 1 and min(self.tiles.shape[1:3]) % step == 0
            self._sums[step] = _halved(self._summed(finer), step) if nested else _sums(self.tiles, step)
        return self._sums[step]

    def densities(self, mpp: float) -> Planes:
        """Optical densities (natural logarithm) of R, G and B in the shrunk picture, float32 (b, h', w')."""
        if mpp not in self._densities:
            self._densities[mpp] = [((plane + 1) / IO).log_().neg_() for plane in self.levels(mpp)]
        return self._densities[mpp]

    def stains(self, mpp: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Densities of haematoxylin and eosin of fixed colour (Ruifrok & Johnston 2001), float32 (b, h', w')."""
        red, green, blue = self.densities(mpp)
        first, second = (red * row[0] + green * row[1] + blue * row[2] for row in _unmix())
        return first, second


def _sums(tiles: torch.Tensor, step: int) -> list[torch.Tensor]:
    b, h, w, _ = tiles.shape
    rows, cols = h // step, w // step
    cut = tiles[:, : rows * step, : cols * step].reshape(b, rows, step, cols * step * 3)
    # Whole rows first: they are long contiguous vectors. Pooling functions take five times as long.
    total = cut[:, :, 0].to(torch.int16 if step <= _INT16_STEP else torch.int32)
    for row in range(1, step):
        total += cut[:, :, row]
    across = total.view(b, rows, cols, step * 3)
    planes = []
    for channel in range(3):
        plane = across[..., channel] + across[..., channel + 3]
        for col in range(2, step):
            plane += across[..., channel + 3 * col]
        planes.append(plane)
    return planes


def _halved(planes: list[torch.Tensor], step: int) -> list[torch.Tensor]:
    """Sums of 2 x 2 sums."""
    kind = torch.int16 if step <= _INT16_STEP else torch.int32
    rows = [plane[:, 0::2].to(kind) + plane[:, 1::2] for plane in planes]
    return [row[:, :, 0::2] + row[:, :, 1::2] for row in rows]


def _by_share(tiles: torch.Tensor, scale: float) -> list[torch.Tensor]:
    """Means over squares of ``scale`` pixels, pixels on a border counting by their share."""
    _, h, w, _ = tiles.shape
    down, across = (_shares(size, scale, tiles.device) for size in (h, w))
    planes = tiles.movedim(-1, 0).float()
    with torch.autocast(tiles.device.type, enabled=False):
        return list((down @ planes @ across.T).unbind(0))


@cache
def _shares(size: int, scale: float, device: torch.device) -> torch.Tensor:
    """Weights (size', size) of the pixels in each bin."""
    count = max(1, math.floor(size / scale + 1e-9))
    edges = np.arange(count + 1)[:, None] * min(scale, size)
    covered = np.clip(edges - np.arange(size)[None], 0, 1)
    with torch.inference_mode(mode=False):
        return torch.from_numpy(np.diff(covered, axis=0) / min(scale, size)).to(device=device, dtype=torch.float32)


@cache
def _unmix() -> tuple[tuple[float, ...], ...]:
    """Two rows that give the two stains from three densities, by least squares."""
    unit = _RUIFROK / np.linalg.norm(_RUIFROK, axis=1, keepdims=True)
    return tuple(map(tuple, np.linalg.pinv(unit).T.tolist()))
