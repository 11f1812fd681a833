"""Several rows of attention that must differ, and may not lean on a few tiles (ACMIL; Zhang et al. 2024)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Judge, Outputs, split_outputs
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.segments import owners, segment_ranks, segment_softmax, segment_sum, segment_weighted_sum


@register("aggregator", "acmil")
@dataclass(frozen=True, kw_only=True)
class Acmil:
    """Attention-challenging: several rows, each trained to answer by itself and to look at other tiles than the rest.

    Args:
        rows: Rows of attention; the bag is weighed by their mean.
        mask_drop: Chance that a tile among the most attended is left out in a training step; 0 for never.
        mask_top: Tiles of a bag that may be left out; at least one tile stays.
        diversity: What likeness of two rows costs in the loss, per unit of mean cosine.
        hidden: Width of the embedded tiles.
        attention: Width of the attention layers.
        dropout: On the embedded tiles while training.
    """

    rows: int = 5
    mask_drop: float = 0.6
    mask_top: int = 10
    diversity: float = 1.0
    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        sizes = {"rows": self.rows, "mask_top": self.mask_top, "hidden": self.hidden, "attention": self.attention}
        check_layers("acmil", **sizes, dropout=self.dropout)
        if not 0 <= self.mask_drop <= 1 or self.diversity < 0:
            cure = "give a chance from 0 to 1, and a cost of 0 or more"
            raise UsageError(f"acmil: mask_drop={self.mask_drop}, diversity={self.diversity}", hint=cure)

    def build(self, in_dim: int, outputs: Outputs) -> AcmilModule:
        """Make the module."""
        return AcmilModule(in_dim, outputs, self)


class AcmilModule(nn.Module):
    """Gated attention of several rows; one linear layer a row answers for it while training."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Acmil) -> None:
        super().__init__()
        self.out_dim, self.outputs, self.spec = spec.hidden, outputs, spec
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.attend = GatedScores(spec.hidden, spec.attention, spec.rows)
        n_outputs = sum(n for _, n in outputs)
        self.answers = nn.ModuleList([nn.Linear(spec.hidden, n_outputs) for _ in range(spec.rows)])

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        scores = self.attend(h)
        if self.training and self.spec.mask_drop:
            scores = scores.masked_fill(self._left_out(scores.detach(), offsets), -torch.inf)
        rows = segment_softmax(scores, offsets)
        weights = rows.mean(dim=1)
        pooled = segment_weighted_sum(h, rows, offsets) if self.training else rows.new_zeros(0)
        return Aggregated(
            bags=segment_weighted_sum(h, weights, offsets),
            weights=weights,
            state={"rows": rows, "pooled": pooled, "offsets": offsets},
        )

    def auxiliary(self, found: Aggregated, judge: Judge) -> torch.Tensor:
        """See :class:`histotl.learn.aggregators.base.Supervised`."""
        parts = zip(self.answers, found.state["pooled"].unbind(dim=1), strict=True)
        losses = [judge.loss(split_outputs(answer(bags), self.outputs)) for answer, bags in parts]
        alike = _likeness(found.state["rows"], found.state["offsets"])
        return torch.stack(losses).mean() + self.spec.diversity * alike

    def _left_out(self, scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Which tiles each row may not see in this step, bool (N, rows)."""
        size = torch.diff(offsets).to(scores.device)[owners(offsets, scores.device)]
        # The last in rank is never among them, so that a tile remains in every bag.
        most = (size - 1).clamp(max=self.spec.mask_top)[:, None]
        ranks = torch.stack([segment_ranks(row, offsets) for row in scores.unbind(dim=1)], dim=1)
        return (ranks < most) & (torch.rand_like(scores) < self.spec.mask_drop)


def _likeness(rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the attention of two rows over a bag, over all pairs of rows and all bags; 0 for one row."""
    if rows.shape[1] < 2:
        return rows.new_zeros(())
    length = segment_sum(rows.square(), offsets).sqrt()
    pairs = [
        segment_sum(rows[:, i] * rows[:, j], offsets) / (length[:, i] * length[:, j])
        for i, j in itertools.combinations(range(rows.shape[1]), 2)
    ]
    return torch.stack(pairs).mean()
