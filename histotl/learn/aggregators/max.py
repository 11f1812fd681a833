"""The largest value of each feature: one outstanding tile is enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.segments import segment_max


@register("aggregator", "max")
@dataclass(frozen=True, kw_only=True)
class Max:
    """Largest value of each feature over the tiles."""

    def build(self, in_dim: int, outputs: Outputs) -> MaxModule:  # noqa: ARG002
        """Make the module."""
        return MaxModule(in_dim)


class MaxModule(nn.Module):
    """Maximum over packed bags; has no parameters."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.out_dim = in_dim

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        return Aggregated(bags=segment_max(x, offsets))
