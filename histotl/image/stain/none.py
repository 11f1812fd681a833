"""No stain normalisation: the pixels as the scanner gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from histotl.core.registry import register


@register("stain", "none")
@dataclass(frozen=True, kw_only=True)
class NoStain:
    """Leaves the tiles as they are."""

    @property
    def needs_fit(self) -> bool:
        """No sample is read."""
        return False

    def fit(self, sample: torch.Tensor) -> Unchanged:
        """Give the identity; the sample, uint8 RGB (n, h, w, 3), is not looked at and may be empty."""
        del sample
        return Unchanged()


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The identity on tiles."""

    state: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the tiles, uint8 RGB (b, h, w, 3), themselves."""
        return tiles
