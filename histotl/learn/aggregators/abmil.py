"""Attention pooling, gated or not (Ilse, Tomczak, Welling 2018), with one row of attention, several, or one a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Judge, Outputs
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.segments import segment_softmax, segment_sum, segment_weighted_sum


@register("aggregator", "abmil")
@dataclass(frozen=True, kw_only=True)
class Abmil:
    """Gated attention: a bag is the sum of its embedded tiles, weighted by a learnt softmax over the bag.

    Args:
        hidden: Width of the tile embedding and of the bag vector.
        attention: Width of the attention layers.
        dropout: Dropout on the embedded tiles while training.
        rows: Rows of attention, whose vectors are joined; ``task`` gives each task a row and a vector of its own.
        gated: False for attention without the gate (eq. 8 of the paper).
        entropy: What spread-out attention is worth in the training loss, per nat of its entropy (AEM, Zhang 2024); 0
            for nothing. It keeps the attention from settling on a few tiles.
    """

    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25
    rows: int | Literal["task"] = 1
    gated: bool = True
    entropy: float = 0.0

    def __post_init__(self) -> None:
        rows = 1 if self.rows == "task" else self.rows
        check_layers("abmil", hidden=self.hidden, attention=self.attention, rows=rows, dropout=self.dropout)
        if not 0 <= self.entropy < float("inf"):
            raise UsageError(f"abmil: entropy={self.entropy}", hint="give 0 or more, such as 0.1")

    def build(self, in_dim: int, outputs: Outputs) -> AbmilModule:
        """Make the module."""
        return AbmilModule(in_dim, outputs, self)


class AbmilModule(nn.Module):
    """a_i = softmax_i(w . (tanh(V h_i) * sigmoid(U h_i))), bag = sum_i a_i h_i, h = dropout(relu(E x))."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Abmil) -> None:
        super().__init__()
        rows = len(outputs) if spec.rows == "task" else spec.rows
        self.out_dim = spec.hidden if spec.rows == "task" else rows * spec.hidden
        self.per_task, self.entropy = spec.rows == "task", spec.entropy
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.attend = GatedScores(spec.hidden, spec.attention, rows, gated=spec.gated)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        weights = segment_softmax(self.attend(h), offsets)
        bags = segment_weighted_sum(h, weights, offsets)
        return Aggregated(
            bags=bags if self.per_task else bags.flatten(1),
            weights=weights if self.per_task else weights.mean(dim=1),
            state={"weights": weights, "offsets": offsets},
            values=h if weights.shape[1] == 1 and not self.per_task else None,
        )

    def auxiliary(self, found: Aggregated, judge: Judge) -> torch.Tensor:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.Supervised`."""
        weights = found.state["weights"]
        if not self.entropy:
            return weights.new_zeros(())
        certain = segment_sum(torch.xlogy(weights, weights), found.state["offsets"])
        return self.entropy * certain.mean()
