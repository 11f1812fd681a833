"""The contract of an augmentation.

An augmentation is a frozen dataclass registered as ``@register("augment", name)``. It holds no random state: every tile
comes with its own seed, so the view of (slide, tile, view number, seed) is a function, whatever the batch order.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Augmentation(Protocol):
    """Makes one view of each tile."""

    def __call__(self, tiles: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Augment a batch.

        Args:
            tiles: uint8 RGB (b, h, w, 3); h and w may differ.
            seeds: int64 (b,), one a tile; equal seed and equal tile give an equal view.

        Returns:
            uint8 RGB (b, h, w, 3) on the same device.
        """
