"""Tiles learn from their neighbours on the lattice before they are pooled (after Patch-GCN; Chen et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.lattice import Neighbours, need_coords
from histotl.learn.segments import segment_softmax, segment_weighted_sum


@register("aggregator", "graph")
@dataclass(frozen=True, kw_only=True)
class Graph:
    """Each tile is mixed with the mean of its eight neighbours, a few times over; then gated attention.

    Args:
        hops: How often, that is how many tiles far a tile learns from.
        hidden: Width of the embedded tiles and of the bag vector.
        attention: Width of the attention layers.
        dropout: On the embedded tiles while training.
    """

    hops: int = 2
    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("graph", hops=self.hops, hidden=self.hidden, attention=self.attention, dropout=self.dropout)

    def build(self, in_dim: int, outputs: Outputs) -> GraphModule:  # noqa: ARG002
        """Make the module."""
        return GraphModule(in_dim, self)


class GraphModule(nn.Module):
    """h_i = h_i + relu(W mean_j h_j) over the neighbours j of i, at each hop; then gated attention."""

    def __init__(self, in_dim: int, spec: Graph) -> None:
        super().__init__()
        self.out_dim = spec.hidden
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.mix = nn.ModuleList([nn.Linear(spec.hidden, spec.hidden) for _ in range(spec.hops)])
        self.attend = GatedScores(spec.hidden, spec.attention)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        near = Neighbours(need_coords("graph", coords), offsets)
        h = self.embed(x)
        for mix in self.mix:
            h = h + torch.relu(mix(near.mean(h)))
        weights = segment_softmax(self.attend(h)[:, 0], offsets)
        return Aggregated(bags=segment_weighted_sum(h, weights, offsets), weights=weights)
