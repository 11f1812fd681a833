"""Additive attention: a bag's answer is the sum of its tiles' answers (Javed et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs, split_outputs
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.segments import segment_softmax, segment_sum, segment_weighted_sum


@register("aggregator", "additive")
@dataclass(frozen=True, kw_only=True)
class Additive:
    """Every tile is answered for, and a bag's answer is their sum weighted by attention: exact contributions.

    Each task has a row of attention of its own.

    Args:
        hidden: Width of the embedded tiles.
        attention: Width of the attention layers.
        inner: Width of the hidden layer of the classifier of tiles.
        dropout: On the embedded tiles while training.
    """

    hidden: int = 512
    attention: int = 256
    inner: int = 128
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("additive", hidden=self.hidden, attention=self.attention, inner=self.inner, dropout=self.dropout)

    def build(self, in_dim: int, outputs: Outputs) -> AdditiveModule:
        """Make the module."""
        return AdditiveModule(in_dim, outputs, self)


class AdditiveModule(nn.Module):
    """answer = b + sum_i a_i c(h_i), with c of two layers."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Additive) -> None:
        super().__init__()
        self.out_dim, self.outputs = spec.hidden, outputs
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.attend = GatedScores(spec.hidden, spec.attention, len(outputs))
        n_outputs = sum(n for _, n in outputs)
        self.classify = nn.Sequential(
            nn.Linear(spec.hidden, spec.inner), nn.GELU(), nn.Linear(spec.inner, n_outputs, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        weights = segment_softmax(self.attend(h), offsets)
        task = torch.arange(len(self.outputs)).repeat_interleave(torch.tensor([n for _, n in self.outputs]))
        parts = self.classify(h) * weights[:, task.to(x.device)]
        return Aggregated(
            bags=segment_weighted_sum(h, weights, offsets),
            weights=weights,
            direct=split_outputs(segment_sum(parts, offsets) + self.bias, self.outputs),
            parts=split_outputs(parts, self.outputs),
            offset=split_outputs(self.bias, self.outputs),
        )
