"""Instance classifier: every tile is answered for, and a bag's answer is pooled from its tiles' (mi-Net, Wang 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs, split_outputs
from histotl.learn.gated import Embedding, check_layers
from histotl.learn.segments import (
    owners,
    segment_argmax,
    segment_lse,
    segment_max,
    segment_mean,
    segment_ranks,
    segment_sum,
)

SHARPNESS = 8.0
"""Of log-sum-exp pooling, on outputs in logits or on sigmoids."""


@register("aggregator", "instance")
@dataclass(frozen=True, kw_only=True)
class Instance:
    """A classifier of tiles, whose outputs are pooled over the bag.

    Args:
        hidden: Width of the embedded tiles.
        pool: How the outputs of the tiles become the bag's: their ``max``, ``topk`` mean, ``lse`` or ``mean``.
        k: Tiles of ``topk``.
        monotone: The bag is a non-negative sum of pooled sigmoids (of ``max`` or ``lse``), so that a tile more can
            raise an output but never lower it: the assumption of multiple instance learning, kept by construction.
        concepts: Sigmoids of a monotone classifier.
        dropout: On the embedded tiles while training.
    """

    hidden: int = 512
    pool: Literal["max", "topk", "lse", "mean"] = "max"
    k: int = 8
    monotone: bool = False
    concepts: int = 16
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("instance", hidden=self.hidden, k=self.k, concepts=self.concepts, dropout=self.dropout)
        if self.monotone and self.pool not in ("max", "lse"):
            cure = "pool='max' or pool='lse': a mean falls when tiles are added"
            raise UsageError(f"instance: monotone=True with pool={self.pool!r}", hint=cure)

    def build(self, in_dim: int, outputs: Outputs) -> nn.Module:
        """Make the module."""
        return MonotoneModule(in_dim, outputs, self) if self.monotone else InstanceModule(in_dim, outputs, self)


class InstanceModule(nn.Module):
    """Outputs W h_i of the tiles, pooled, plus a bias."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Instance) -> None:
        super().__init__()
        self.out_dim, self.outputs, self.spec = spec.hidden, outputs, spec
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.score = nn.Linear(spec.hidden, sum(n for _, n in outputs), bias=False)
        self.bias = nn.Parameter(torch.zeros(self.score.out_features))

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        scores, bags = self.score(h), segment_mean(h, offsets)
        if self.spec.pool == "lse":
            answers = segment_lse(scores, offsets, SHARPNESS) + self.bias
            return Aggregated(bags=bags, direct=split_outputs(answers, self.outputs))
        parts = scores * _chosen(scores.detach(), offsets, self.spec)
        return Aggregated(
            bags=bags,
            direct=split_outputs(segment_sum(parts, offsets) + self.bias, self.outputs),
            parts=split_outputs(parts, self.outputs),
            offset=split_outputs(self.bias, self.outputs),
        )


class MonotoneModule(nn.Module):
    """softplus(W) pool(sigmoid(C h_i)) + b: no tile can lower an output."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Instance) -> None:
        super().__init__()
        self.out_dim, self.outputs, self.pool = spec.concepts, outputs, spec.pool
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.concepts = nn.Linear(spec.hidden, spec.concepts)
        # Concepts begin as rare, and their sum as small: the highest of many tiles would else decide from the start.
        nn.init.constant_(self.concepts.bias, -2.0)
        self.weight = nn.Parameter(torch.randn(sum(n for _, n in outputs), spec.concepts) * 0.1)
        self.bias = nn.Parameter(torch.full((len(self.weight),), -2.0))

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        found = torch.sigmoid(self.concepts(self.embed(x)))
        if self.pool == "max":
            bags = segment_max(found, offsets)
        else:
            # Of the sum, not of the mean, which a tile more can lower.
            size = torch.diff(offsets).to(found)[:, None]
            bags = segment_lse(found, offsets, SHARPNESS) + size.log() / SHARPNESS
        answers = nn.functional.linear(bags, nn.functional.softplus(self.weight), self.bias)
        return Aggregated(bags=bags, direct=split_outputs(answers, self.outputs))


def _chosen(scores: torch.Tensor, offsets: torch.Tensor, spec: Instance) -> torch.Tensor:
    """Share of each tile in each pooled output, float (N, o); the shares of a bag sum to 1."""
    size = torch.diff(offsets).to(scores.device)[owners(offsets, scores.device)][:, None]
    if spec.pool == "mean":
        return (1 / size.to(scores)).expand_as(scores)
    if spec.pool == "max":
        return torch.zeros_like(scores).scatter_(0, segment_argmax(scores, offsets), 1.0)
    ranks = torch.stack([segment_ranks(column, offsets) for column in scores.unbind(dim=1)], dim=1)
    kept = size.clamp(max=spec.k)
    return (ranks < kept).to(scores) / kept
