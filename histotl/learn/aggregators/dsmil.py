"""Two streams: the tile with the highest score, and the other tiles by their likeness to it (DSMIL; Li et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Judge, Outputs, split_outputs, task_means
from histotl.learn.gated import Embedding, check_layers
from histotl.learn.segments import owners, segment_argmax, segment_softmax, segment_weighted_sum


@register("aggregator", "dsmil")
@dataclass(frozen=True, kw_only=True)
class Dsmil:
    """Dual stream: for each output, tiles are weighed by how much they look like the one that scores highest.

    Args:
        hidden: Width of the embedded tiles.
        query: Width of the vectors that are compared.
        dropout: On the embedded tiles while training.
    """

    hidden: int = 512
    query: int = 128
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("dsmil", hidden=self.hidden, query=self.query, dropout=self.dropout)

    def build(self, in_dim: int, outputs: Outputs) -> DsmilModule:
        """Make the module."""
        return DsmilModule(in_dim, outputs, self)


class DsmilModule(nn.Module):
    """Answers of the second stream; the first, the maximum over the tiles, is trained beside it with the same loss."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: Dsmil) -> None:
        super().__init__()
        self.out_dim, self.outputs = spec.hidden, outputs
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.score = nn.Linear(spec.hidden, sum(n for _, n in outputs))
        self.query = nn.Sequential(nn.Linear(spec.hidden, spec.query), nn.Tanh())
        # Each output sees the vectors of all outputs of its task.
        self.answers = nn.ModuleList([nn.Linear(n * spec.hidden, n) for _, n in outputs])

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h, owner = self.embed(x), owners(offsets, x.device)
        scores, query = self.score(h), self.query(h)
        critical = segment_argmax(scores, offsets)
        scale = query.shape[1] ** -0.5
        likeness = [torch.linalg.vecdot(query, query[row][owner]) * scale for row in critical.unbind(dim=1)]
        weights = segment_softmax(torch.stack(likeness, dim=1), offsets)
        bags = segment_weighted_sum(h, weights, offsets)
        parts = torch.split(bags, [n for _, n in self.outputs], dim=1)
        tasks = zip(self.outputs, self.answers, parts, strict=True)
        return Aggregated(
            bags=task_means(bags, self.outputs),
            weights=task_means(weights, self.outputs),
            direct={name: answer(part.flatten(1)) for (name, _), answer, part in tasks},
            state={"highest": scores.gather(0, critical)},
        )

    def auxiliary(self, found: Aggregated, judge: Judge) -> torch.Tensor:
        """See :class:`histotl.learn.aggregators.base.Supervised`."""
        return judge.loss(split_outputs(found.state["highest"], self.outputs))
