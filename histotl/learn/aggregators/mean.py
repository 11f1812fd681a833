"""The mean of the tiles: the anchor that every other aggregator has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.segments import lengths, segment_mean


@register("aggregator", "mean")
@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean of the tile vectors; every tile has the same weight."""

    def build(self, in_dim: int, outputs: Outputs) -> MeanModule:  # noqa: ARG002
        """Make the module."""
        return MeanModule(in_dim)


class MeanModule(nn.Module):
    """Mean pooling over packed bags; has no parameters."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.out_dim = in_dim

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        sizes = torch.tensor(lengths(offsets), device=x.device)
        weights = (1 / sizes.to(x.dtype)).repeat_interleave(sizes)
        return Aggregated(bags=segment_mean(x, offsets), weights=weights, values=x)
