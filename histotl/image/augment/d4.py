"""The eight flips and rotations of a square: tissue has no up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.image._random import uniform

_STREAM = 1


@register("augment", "d4")
@dataclass(frozen=True, kw_only=True)
class D4:
    """One of the eight flips and quarter turns of each tile, all equally likely; no pixel is interpolated.

    Of a tile that is not square, one of the four that keep its shape.
    """

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Turn uint8 RGB (b, h, w, 3) by seeds, int64 (b,)."""
        # Which tile is turned how is known on the host: a GPU that were asked would have to finish its work first.
        element = (uniform(seeds.cpu(), 1, stream=_STREAM)[:, 0] * 8).to(torch.int64)
        if tiles.shape[1] != tiles.shape[2]:
            element = element // 2 * 2
        out = torch.empty_like(tiles)
        for number in sorted(set(element.tolist())):
            chosen = (element == number).nonzero()[:, 0].to(tiles.device)
            out[chosen] = symmetry(tiles[chosen], number)
        return out


def symmetry(tiles: torch.Tensor, number: int) -> torch.Tensor:
    """Apply one element of the group D4 to tiles (b, h, w, 3), square where it turns by a quarter.

    Args:
        tiles: The tiles.
        number: 0 to 7: quarter turns (``number % 4``), then a mirror image for 4 and above; 0 is the identity.
    """
    turned = torch.rot90(tiles, number % 4, dims=(1, 2))
    return turned.flip(2) if number >= 4 else turned
