"""Each task's noise level is learnt (Kendall, Gal and Cipolla, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.balancing.base import Losses, Setting, stacked


@register("balancing", "uncertainty")
@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Sum of ``(exp(-s) loss + s) / 2`` with a learnt s = log of the noise variance for each task.

    Losses are in units of their constant predictors, so one form serves classes and numbers, and s starts at 0.

    Args:
        rate: Learning rate of the s (Adam).
    """

    rate: float = 0.025

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError(f"uncertainty's rate is {self.rate}", hint="give a rate such as 0.025")

    def start(self, setting: Setting) -> UncertaintyRule:
        """All s at 0."""
        return UncertaintyRule(self, setting)


class UncertaintyRule:
    """Keeps the s of one run."""

    def __init__(self, made_by: Uncertainty, setting: Setting) -> None:
        self.levels = {name: torch.zeros((), device=setting.device, requires_grad=True) for name in setting.names}
        self._adam = torch.optim.Adam(self.levels.values(), lr=made_by.rate)

    def total(self, losses: Losses) -> torch.Tensor:
        """See :class:`histotl.learn.balancing.base.LossRule`."""
        s = torch.stack([self.levels[name] for name in losses])
        return ((torch.exp(-s) * stacked(losses) + s) / 2).sum()

    def after_step(self, again: Callable[[], Losses]) -> None:  # noqa: ARG002
        """Move the s of the tasks that had labels."""
        self._adam.step()
        self._adam.zero_grad()
