"""The contract of an aggregator: tiles of a slide become one vector.

An aggregator is a frozen dataclass registered as ``@register("aggregator", name)`` whose :meth:`Aggregator.build` makes
the module. Bags are packed, never padded: all tiles of all slides in one matrix with row offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """Result for B bags with N tiles in all.

    Args:
        bags: float (B, d), one vector a bag.
        weights: float (N,), each tile's share in its bag (sums to 1 within a bag), or None where there is none.
    """

    bags: torch.Tensor
    weights: torch.Tensor | None = None


class AggregatorModule(Protocol):
    """The built module (an ``nn.Module``)."""

    @property
    def out_dim(self) -> int:
        """D of the bag vectors."""

    def __call__(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """Aggregate.

        Args:
            x: float (N, D) tile vectors of all bags, bag after bag.
            offsets: int64 (B + 1,): bag b holds rows ``offsets[b]:offsets[b + 1]``; no bag is empty.
            coords: int64 (N, 2) level-0 corners, for aggregators that look at positions.
        """


class Aggregator(Protocol):
    """Knows how to build the module."""

    def build(self, in_dim: int) -> AggregatorModule:
        """Make a module for tile vectors of length ``in_dim``."""
