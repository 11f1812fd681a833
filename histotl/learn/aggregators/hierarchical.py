"""Tiles become regions, regions become the slide (after HIPT; Chen et al. 2022), by attention at both levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.lattice import need_coords, regions
from histotl.learn.segments import owners, segment_softmax, segment_weighted_sum


@register("aggregator", "hierarchical")
@dataclass(frozen=True, kw_only=True)
class Hierarchical:
    """Gated attention over the tiles of each square region, then over the regions.

    Args:
        region: Side of a region in tiles.
        hidden: Width of the embedded tiles, of the regions and of the bag vector.
        attention: Width of the attention layers.
        dropout: On the embedded tiles while training.
    """

    region: int = 16
    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        sizes = {"region": self.region, "hidden": self.hidden, "attention": self.attention}
        check_layers("hierarchical", **sizes, dropout=self.dropout)

    def build(self, in_dim: int, outputs: Outputs) -> HierarchicalModule:  # noqa: ARG002
        """Make the module."""
        return HierarchicalModule(in_dim, self)


class HierarchicalModule(nn.Module):
    """r = sum_i a_i h_i over the tiles of a region, g = relu(G r), bag = sum_r b_r g_r."""

    def __init__(self, in_dim: int, spec: Hierarchical) -> None:
        super().__init__()
        self.out_dim, self.side = spec.hidden, spec.region
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.inner = GatedScores(spec.hidden, spec.attention)
        self.lift = nn.Sequential(nn.Linear(spec.hidden, spec.hidden), nn.ReLU())
        self.outer = GatedScores(spec.hidden, spec.attention)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        order, inner, outer = regions(need_coords("hierarchical", coords), offsets, self.side)
        h = self.embed(x)[order]
        within = segment_softmax(self.inner(h)[:, 0], inner)
        places = self.lift(segment_weighted_sum(h, within, inner))
        between = segment_softmax(self.outer(places)[:, 0], outer)
        shares = within * between[owners(inner, x.device)]
        return Aggregated(
            bags=segment_weighted_sum(places, between, outer),
            weights=torch.empty_like(shares).index_copy(0, order, shares),
        )
