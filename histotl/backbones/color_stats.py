"""Mean and spread of each colour channel: the baseline that every backbone must beat.

A tissue benchmark that six colour numbers solve says nothing about backbones (NCT-CRC: over half of the nine classes
follow from mean colour alone, arXiv 2409.11546), so these numbers stand beside every result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.core.values import BackboneCard


@register("backbone", "color_stats")
@dataclass(frozen=True, kw_only=True)
class ColorStats:
    """Mean and standard deviation of R, G and B; 6 numbers, no weights."""

    def load(self, device: torch.device) -> ColorStatsEmbedder:
        """Build the embedder; it has no weights and works on whatever device the tiles are on."""
        del device
        return ColorStatsEmbedder()


class ColorStatsEmbedder:
    """Channel means, then channel standard deviations, of RGB scaled to [0, 1]."""

    card = BackboneCard(
        name="color_stats",
        dim=6,
        pooling="mean+std",
        input_px=224,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="Apache-2.0",
        fp32_only=True,
    )

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed uint8 RGB (b, h, w, 3) into float32 (b, 6)."""
        planes = tiles.permute(0, 3, 1, 2).flatten(2).to(torch.float32) / 255
        # The biased estimate is defined for a tile of one pixel too.
        spread, mean = torch.std_mean(planes, dim=2, correction=0)
        return torch.cat([mean, spread], dim=1)
