"""Quantiles of each feature: the whole distribution of the tiles, not only its middle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.segments import segment_quantile


@register("aggregator", "quantile")
@dataclass(frozen=True, kw_only=True)
class Quantile:
    """Quantiles of each feature over the tiles, one after the other.

    Args:
        levels: Shares of the tiles that lie below.
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        if not self.levels or not all(0 <= level <= 1 for level in self.levels):
            raise UsageError(f"quantile: levels={self.levels}", hint="give shares from 0 to 1, such as (0.1, 0.5, 0.9)")

    def build(self, in_dim: int, outputs: Outputs) -> QuantileModule:  # noqa: ARG002
        """Make the module."""
        return QuantileModule(in_dim, self.levels)


class QuantileModule(nn.Module):
    """Quantiles over packed bags; has no parameters."""

    def __init__(self, in_dim: int, levels: tuple[float, ...]) -> None:
        super().__init__()
        self.out_dim, self.levels = in_dim * len(levels), levels

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        return Aggregated(bags=segment_quantile(x, offsets, self.levels).flatten(1))
