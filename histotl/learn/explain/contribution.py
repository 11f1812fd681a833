"""What each tile adds to the answer, where the answer is a sum over tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.explain.base import Question

TOLERANCE = 1e-9
"""How far the parts may be from the answer, in units of the largest of them, for the sum to count as exact."""


@register("explain", "contribution")
@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Additive parts: a_i W h_i, which sum over the slide to the output less its bias and what covariates say.

    Exact, and therefore given only where the answer is such a sum: an additive aggregator says its parts itself; with
    attention or mean pooling everything behind the pooling must be linear. Whether it is, is tried on the bag: then
    the answer to the weighted mean of the tiles is the weighted mean of the answers to single tiles.
    """

    signed: ClassVar[bool] = True

    def scores(self, question: Question) -> torch.Tensor:
        """See :class:`histotl.learn.explain.base.Explainer`."""
        pooled, task = question.pooled(), question.task
        if question.network.recall(task) is not None:
            raise _not_exact("the answer is a vote of training rows")
        if task in pooled.parts:
            return pooled.parts[task] @ question.readout
        if task in pooled.direct or pooled.values is None or pooled.weights is None:
            raise _not_exact("this aggregator does not sum over tiles")
        # The mean bag is 0 to what lies behind the pooling: what is answered to it, no tile has said.
        rest = question.of_bags(question.network.bag_mean[None])[0]
        parts = pooled.weights[:, None] * (question.of_bags(pooled.values) - rest)
        gap = float((parts.sum(dim=0) + rest - question.answer()).abs().max())
        if gap > TOLERANCE * max(1.0, float(parts.abs().sum(dim=0).max())):
            raise _not_exact(f"what lies behind the pooling is not linear (the parts miss the answer by {gap:.2g})")
        return parts


def _not_exact(fact: str) -> UsageError:
    cure = "train with --hidden 0 or with an additive aggregator, or use leave_one_out"
    return UsageError(f"contributions are not exact here: {fact}", hint=cure)
