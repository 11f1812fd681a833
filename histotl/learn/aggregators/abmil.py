"""Gated attention pooling (Ilse, Tomczak, Welling 2018, eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.segments import segment_softmax, segment_weighted_sum


@register("aggregator", "abmil")
@dataclass(frozen=True, kw_only=True)
class Abmil:
    """Gated attention: a bag is the sum of its embedded tiles, weighted by a learnt softmax over the bag.

    Args:
        hidden: Width of the tile embedding and of the bag vector.
        attention: Width of the attention layers.
        dropout: Dropout on the embedded tiles while training.
    """

    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        if min(self.hidden, self.attention) < 1 or not 0 <= self.dropout < 1:
            cure = "give widths of 1 or more and a dropout from 0 to below 1"
            raise UsageError(
                f"abmil: hidden={self.hidden}, attention={self.attention}, dropout={self.dropout}", hint=cure
            )

    def build(self, in_dim: int, outputs: Outputs) -> AbmilModule:  # noqa: ARG002
        """Make the module."""
        return AbmilModule(in_dim, self)


class AbmilModule(nn.Module):
    """a_i = softmax_i(w . (tanh(V h_i) * sigmoid(U h_i))), bag = sum_i a_i h_i, h = dropout(relu(E x))."""

    def __init__(self, in_dim: int, spec: Abmil) -> None:
        super().__init__()
        self.out_dim = spec.hidden
        self.embed = nn.Sequential(nn.Linear(in_dim, spec.hidden), nn.ReLU(), nn.Dropout(spec.dropout))
        # V and U in one matrix: one product over the packed tiles.
        self.gates = nn.Linear(spec.hidden, 2 * spec.attention)
        self.score = nn.Linear(spec.attention, 1, bias=False)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        v, u = self.gates(h).chunk(2, dim=1)
        scores = self.score(torch.tanh(v) * torch.sigmoid(u))[:, 0]
        weights = segment_softmax(scores, offsets)
        return Aggregated(bags=segment_weighted_sum(h, weights, offsets), weights=weights, values=h)
