"""Attention pooling that also learns from the tiles it attends to most and least (CLAM; Lu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Judge, Outputs, split_outputs, task_means
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.segments import owners, segment_ranks, segment_softmax, segment_weighted_sum


@register("aggregator", "clam")
@dataclass(frozen=True, kw_only=True)
class Clam:
    """Gated attention with pseudo-labels: the most attended tiles show their bag's class, the least attended do not.

    Tasks without classes take part in the attention and get no pseudo-labels.

    Args:
        branches: ``single``: one row of attention for all (CLAM-SB); ``multi``: one for every output of every task,
            each of which answers from its own vector (CLAM-MB).
        k: Tiles of a bag with either pseudo-label; half of the tiles where a bag has fewer than twice as many, so that
            no tile gets both.
        weight: Share of the loss on tiles in the whole loss.
        others: The most attended tiles of a bag are also told that they do not show the other classes (for classes
            that exclude each other in a slide).
        hidden: Width of the embedded tiles.
        attention: Width of the attention layers.
        dropout: On the embedded tiles while training.
    """

    branches: Literal["single", "multi"] = "single"
    k: int = 8
    weight: float = 0.3
    others: bool = False
    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("clam", k=self.k, hidden=self.hidden, attention=self.attention, dropout=self.dropout)
        if not 0 <= self.weight < 1:
            raise UsageError(f"clam: weight={self.weight}", hint="give a share from 0 to below 1, such as 0.3")

    def build(self, in_dim: int, outputs: Outputs) -> ClamModule:
        """Make the module."""
        return ClamModule(in_dim, outputs, self)


class ClamModule(nn.Module):
    """Gated attention, and a classifier of tiles for each class of each task."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Clam) -> None:
        super().__init__()
        self.out_dim, self.outputs, self.spec = spec.hidden, outputs, spec
        n_outputs = sum(n for _, n in outputs)
        self.multi = spec.branches == "multi"
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.attend = GatedScores(spec.hidden, spec.attention, n_outputs if self.multi else 1)
        self.answer = nn.Linear(spec.hidden, n_outputs) if self.multi else None
        # A task of o outputs has at most o + 1 classes: heads of ordered and of two classes leave one output out.
        self.instance = nn.Linear(spec.hidden, n_outputs + len(outputs))

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        scores = self.attend(h)
        weights = segment_softmax(scores, offsets)
        bags = segment_weighted_sum(h, weights, offsets)
        state = {"h": h, "scores": scores, "offsets": offsets}
        if self.answer is None:
            return Aggregated(bags=bags[:, 0], weights=weights[:, 0], state=state)
        matrix, bias = self.answer.weight, self.answer.bias
        parts = weights * (h @ matrix.T)
        return Aggregated(
            bags=task_means(bags, self.outputs),
            weights=task_means(weights, self.outputs),
            direct=split_outputs((bags * matrix).sum(dim=2) + bias, self.outputs),
            parts=split_outputs(parts, self.outputs),
            offset=split_outputs(bias, self.outputs),
            state=state,
        )

    def auxiliary(self, found: Aggregated, judge: Judge) -> torch.Tensor:
        """See :class:`histotl.learn.aggregators.base.Supervised`."""
        h, scores, offsets = (found.state[name] for name in ("h", "scores", "offsets"))
        losses, row, place = [], 0, 0
        for name, n in self.outputs:
            classes = judge.classes(name)
            if classes is not None and bool((classes >= 0).any()):
                rows = row + classes.clamp(0, n - 1) if self.multi else torch.zeros_like(classes)
                heads = slice(place, place + n + 1)
                losses.append(self._instance_loss(h, scores.detach(), offsets, rows, classes, heads))
            row, place = row + n, place + n + 1
        if not losses:
            return h.new_zeros(())
        return torch.stack(losses).mean() * self.spec.weight / (1 - self.spec.weight)

    def _instance_loss(
        self,
        h: torch.Tensor,
        scores: torch.Tensor,
        offsets: torch.Tensor,
        rows: torch.Tensor,
        classes: torch.Tensor,
        heads: slice,
    ) -> torch.Tensor:
        """Mean over the tiles with pseudo-labels of one task.

        Args:
            h: float (N, d).
            scores: float (N, r) of the attention.
            offsets: int64 (B + 1,).
            rows: int64 (B,): the row of attention that ranks a bag's tiles.
            classes: int64 (B,), -1 for bags without a label.
            heads: Classifiers of the task.
        """
        owner = owners(offsets, h.device)
        ranks = segment_ranks(scores.gather(1, rows[owner, None])[:, 0], offsets)
        size = torch.diff(offsets).to(h.device)
        kept = (size // 2).clamp(max=self.spec.k) * (classes >= 0)
        top = ranks < kept[owner]
        chosen = torch.nonzero(top | (ranks >= (size - kept)[owner]))[:, 0]
        if not len(chosen):
            return h.new_zeros(())
        logits = nn.functional.linear(h[chosen], self.instance.weight[heads], self.instance.bias[heads])
        own = classes[owner[chosen], None]
        wanted = top[chosen].to(h)[:, None]
        loss = binary_cross_entropy_with_logits(logits.gather(1, own), wanted)
        if self.spec.others:
            other = torch.ones_like(logits).scatter_(1, own, 0) * wanted
            wrong = binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
            loss = loss + (wrong * other).sum() / other.sum().clamp(min=1)
        return loss
