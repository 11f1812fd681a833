"""How the answer would change without a tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.explain.base import Question

HEAVY = 1 - 1e-3
"""A tile with a larger share is taken out for real: what would be left of the mean is rounding."""


@register("explain", "leave_one_out")
@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """Answer of the slide less its answer without the tile.

    Without tile i a weighted mean z of values h is (z - a_i h_i) / (1 - a_i), because a softmax over the others is the
    old one, scaled; so n answers cost no more than n bag vectors through trunk and linear layer, whatever lies behind
    the pooling. Aggregators in which tiles look at each other have no such formula and are asked n times, at n² cost.
    The only tile of a slide gets NaN.

    Args:
        most: Most tiles of a slide that is to be asked n times.
    """

    most: int = 4096
    signed: ClassVar[bool] = True

    def scores(self, question: Question) -> torch.Tensor:
        """See :class:`histotl.learn.explain.base.Explainer`."""
        if question.n == 1:
            return torch.full((1, question.readout.shape[1]), torch.nan, dtype=torch.float64)
        pooled = question.pooled()
        if question.task in pooled.direct or pooled.values is None or pooled.weights is None:
            if question.n > self.most:
                cure = f"use integrated_gradients, or leave_one_out(most={question.n})"
                raise UsageError(f"leave_one_out would answer {question.n} times for one slide", hint=cure)
            return question.answer() - one_by_one(question, torch.arange(question.n))
        share = pooled.weights[:, None]
        heavy = torch.nonzero(pooled.weights > HEAVY)[:, 0]
        rest = (pooled.bags - share * pooled.values) / (1 - share).clamp_min(1 - HEAVY)
        without = question.of_bags(rest)
        if len(heavy):
            without[heavy] = one_by_one(question, heavy)
        return question.answer() - without


def one_by_one(question: Question, places: torch.Tensor) -> torch.Tensor:
    """Read-out (p, c) of the bag without each of some tiles, by answering again each time."""
    everything = torch.arange(question.n)
    return question.of_parts([everything[everything != place] for place in places])
