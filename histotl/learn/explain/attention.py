"""The weights by which tiles were averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.explain.base import Question


@register("explain", "attention")
@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention: how much a tile was looked at, not what it said.

    Shares of one bag, which sum to 1: not to be compared between slides, the same for every class, and high for tiles
    that speak against the answer as for those that speak for it. An aggregator with a row of attention for each task
    gives the task's own row; of other rows it is the mean.
    """

    signed: ClassVar[bool] = False

    def scores(self, question: Question) -> torch.Tensor:
        """See :class:`histotl.learn.explain.base.Explainer`."""
        pooled = question.pooled()
        if pooled.weights is None or question.network.pools_first:
            fact = "this aggregator has no attention" if pooled.weights is None else "every tile has the same weight"
            raise UsageError(f"attention explains nothing: {fact}", hint="use leave_one_out")
        weights = pooled.weights
        if weights.ndim == 2:
            names = question.network.names
            of_task = pooled.bags.ndim == 3 and weights.shape[1] == len(names)
            weights = weights[:, names.index(question.task)] if of_task else weights.mean(dim=1)
        return weights[:, None].expand(-1, question.readout.shape[1]).clone()
