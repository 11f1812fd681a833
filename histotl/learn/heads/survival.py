"""Time to an event: Cox's model, or a hazard a bin of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch

from histotl.core.errors import TableError, UsageError
from histotl.core.registry import register
from histotl.learn.heads._hazard import Ties, baseline_hazard, bin_losses, partial_likelihood
from histotl.learn.heads.base import Floats, Nature, TaskFacts

SCORE = 50.0
"""Log hazard ratios beyond it give the same survival."""


@register("head", "survival")
@dataclass(frozen=True, kw_only=True)
class Survival:
    """Risk of an event, and the chance to be without it at some times; rows may end without an event.

    The answer is the risk, higher for an earlier event: the log hazard ratio of ``cox``, or minus the mean survival
    over the bins of ``discrete``. Columns ``TASK:S(12)`` give the probability of no event until time 12.

    Args:
        loss: ``cox``: partial likelihood over all training rows, whatever the rows of a step. ``discrete``: a hazard
            for each bin of time.
        ties: Of event times in ``cox``.
        bins: Bins of time in ``discrete``, with as many events each; fewer where times repeat.
        alpha: How much less a row without an event counts in ``discrete``, 0 to below 1.
        times: Times of the survival probabilities; empty: the quartiles of the event times of train.
        edges: Upper ends of the bins; empty: set from the labels of train.
        baseline: Cumulative baseline hazard at ``times``; set by training.
    """

    loss: Literal["cox", "discrete"] = "cox"
    ties: Ties = "efron"
    bins: int = 8
    alpha: float = 0.0
    times: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    baseline: tuple[float, ...] = ()

    nature: ClassVar[Nature] = Nature(answers="risk")

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise UsageError(f"bins is {self.bins}", hint="give 2 or more, such as 8")
        if not 0 <= self.alpha < 1:
            raise UsageError(f"alpha is {self.alpha}", hint="give a share from 0 to below 1")
        for name in ("times", "edges"):
            values = getattr(self, name)
            if any(not low < high for low, high in zip((0.0, *values), values, strict=False)):
                raise UsageError(f"{name} are {values}", hint="give rising times above 0, such as (12, 36, 60)")

    def n_outputs(self, n_classes: int) -> int:  # noqa: ARG002
        """The score, or one hazard a bin."""
        return 1 if self.loss == "cox" else len(self.edges) or self.bins

    def learn(self, target: Floats) -> Survival:
        """With times and bins from the event times.

        Raises:
            TableError: No training row has the event, or all at one time.
        """
        seen = target[target[:, 1] > 0, 0]
        if not len(seen):
            raise TableError("no row of train has the event", hint="check event=: 1, true or yes is an event")
        times = self.times or _rising(np.quantile(seen, [0.25, 0.5, 0.75]))
        if self.edges or self.loss == "cox":
            return replace(self, times=times)
        inner = _rising(np.quantile(seen, np.arange(1, self.bins) / self.bins))
        end = float(target[:, 0].max())
        edges = (*(edge for edge in inner if edge < end), end)
        if len(edges) < 2:
            raise TableError(f"all events of train are at the time {end:g}", hint="use loss='cox', or other times")
        return replace(self, times=times, edges=edges)

    def row_losses(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        class_weight: torch.Tensor | None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Negative log-likelihood of each row of ``discrete``; of ``cox`` the joint loss as the same number a row."""
        if self.loss == "cox":
            found = self.joint_loss(outputs, target)
            return outputs.sum(dim=1) * 0 if found is None else found.expand(len(outputs))
        edges = outputs.new_tensor(self.edges or tuple(range(1, self.bins + 1)))
        return bin_losses(outputs, target[:, 0].to(outputs.dtype), target[:, 1] > 0, edges, alpha=self.alpha)

    @property
    def joint(self) -> bool:
        """Cox's partial likelihood is one number of all rows."""
        return self.loss == "cox"

    def joint_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        """Negative log partial likelihood an event; None without any event."""
        event = target[:, 1] > 0
        return partial_likelihood(outputs[:, 0], target[:, 0], event, ties=self.ties) if bool(event.any()) else None

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """The log hazard ratio (n, 1), or the survival at the end of each bin (n, b)."""
        return outputs if self.loss == "cox" else torch.cumprod(torch.sigmoid(-outputs), dim=1)

    def finish(self, values: Floats, target: Floats) -> Survival:
        """With the baseline hazard of the training rows (Breslow), for ``cox``."""
        if self.loss != "cox":
            return self
        found = baseline_hazard(values[:, 0], target[:, 0], target[:, 1], np.asarray(self.times))
        return replace(self, baseline=tuple(found.tolist()))

    @property
    def extras(self) -> tuple[str, ...]:
        """One survival probability a time."""
        return tuple(f"S({time:g})" for time in self.times) if self.loss == "discrete" or self.baseline else ()

    def decode(self, values: Floats, facts: TaskFacts) -> Floats:  # noqa: ARG002
        """Risk, then the survival at ``times``; between the ends of bins on a straight line."""
        if self.loss == "cox":
            survival = np.exp(-np.array(self.baseline) * np.exp(np.clip(values, -SCORE, SCORE)))
            return np.concatenate([values, survival], axis=1)
        ends, start = np.array([0.0, *self.edges]), np.ones((len(values), 1))
        curves = np.concatenate([start, values], axis=1)
        survival = np.stack([np.interp(self.times, ends, curve) for curve in curves])
        return np.concatenate([-values.mean(axis=1, keepdims=True), survival], axis=1)


def _rising(values: Floats) -> tuple[float, ...]:
    """Different ones of them above 0, in order."""
    return tuple(float(value) for value in np.unique(values) if value > 0)
