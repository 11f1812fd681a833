"""Tasks that improve slowly get more weight (Liu, Johns and Davison, CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.balancing.base import Losses, Setting, stacked


@register("balancing", "dwa")
@dataclass(frozen=True, kw_only=True)
class DynamicWeightAverage:
    """Weights ``T softmax(r / temperature)`` with r = mean loss of the last epoch over that of the one before it.

    In the first two epochs, and for a task without labels in one of the last two, r is 1.

    Args:
        temperature: The larger, the more even.
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"dwa's temperature is {self.temperature}", hint="give a positive number such as 2.0")

    def start(self, setting: Setting) -> DynamicWeightAverageRule:
        """Even weights."""
        return DynamicWeightAverageRule(self, setting)


class DynamicWeightAverageRule:
    """Keeps the losses of the last epochs."""

    def __init__(self, made_by: DynamicWeightAverage, setting: Setting) -> None:
        self._temperature, self._epoch, self._step = made_by.temperature, setting.epoch, 0
        self._now: dict[str, list[torch.Tensor]] = {}
        self._past: list[dict[str, float]] = []
        self.ratios = dict.fromkeys(setting.names, 1.0)

    def total(self, losses: Losses) -> torch.Tensor:
        """See :class:`histotl.learn.balancing.base.LossRule`."""
        for name, loss in losses.items():
            self._now.setdefault(name, []).append(loss.detach())
        values = stacked(losses)
        ratios = torch.tensor([self.ratios[name] for name in losses], device=values.device)
        return (len(losses) * torch.softmax(ratios / self._temperature, dim=0) * values).sum()

    def after_step(self, again: Callable[[], Losses]) -> None:  # noqa: ARG002
        """At the end of an epoch, weigh anew."""
        self._step += 1
        if self._step % self._epoch:
            return
        means = {name: float(torch.stack(seen).mean()) for name, seen in self._now.items()}
        self._past, self._now = [*self._past[-1:], means], {}
        if len(self._past) == 2:
            before, last = self._past
            known = {n for n in self.ratios if n in before and n in last and before[n] > 0}
            self.ratios = {n: last[n] / before[n] if n in known else 1.0 for n in self.ratios}
