"""The mean of the k largest values of each feature: between mean and maximum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.gated import check_layers
from histotl.learn.segments import segment_topk_mean


@register("aggregator", "topk")
@dataclass(frozen=True, kw_only=True)
class TopK:
    """Mean of the k largest values of each feature over the tiles.

    Args:
        k: Values; all of a bag that has fewer tiles.
    """

    k: int = 8

    def __post_init__(self) -> None:
        check_layers("topk", k=self.k)

    def build(self, in_dim: int, outputs: Outputs) -> TopKModule:  # noqa: ARG002
        """Make the module."""
        return TopKModule(in_dim, self.k)


class TopKModule(nn.Module):
    """Top-k mean over packed bags; has no parameters."""

    def __init__(self, in_dim: int, k: int) -> None:
        super().__init__()
        self.out_dim, self.k = in_dim, k

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        return Aggregated(bags=segment_topk_mean(x, offsets, self.k))
