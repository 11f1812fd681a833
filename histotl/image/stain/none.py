"""No stain normalisation: the pixels as the scanner gave them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.image._transforms import Unchanged


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
        return Unchanged(state={})
