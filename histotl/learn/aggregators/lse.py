"""A smooth maximum of each feature (log-sum-exp pooling; Ramon and De Raedt 2000)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.segments import segment_lse


@register("aggregator", "lse")
@dataclass(frozen=True, kw_only=True)
class Lse:
    """Smooth maximum log(mean(exp(r x))) / r of each feature over the tiles.

    Args:
        sharpness: r, per standard deviation of a feature: the mean towards 0, the maximum as it grows.
    """

    sharpness: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.sharpness < float("inf"):
            raise UsageError(f"lse: sharpness={self.sharpness}", hint="give a number above 0, such as 2.0")

    def build(self, in_dim: int, outputs: Outputs) -> LseModule:  # noqa: ARG002
        """Make the module."""
        return LseModule(in_dim, self.sharpness)


class LseModule(nn.Module):
    """Smooth maximum over packed bags; has no parameters."""

    def __init__(self, in_dim: int, sharpness: float) -> None:
        super().__init__()
        self.out_dim, self.sharpness = in_dim, sharpness

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        return Aggregated(bags=segment_lse(x, offsets, self.sharpness))
