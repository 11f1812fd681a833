"""Equal relative progress at the cost of one more forward pass (Liu et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.balancing.base import Losses, Setting, log_losses


@register("balancing", "famo")
@dataclass(frozen=True, kw_only=True)
class Famo:
    """Fast adaptive multi-task optimisation: descends ``sum(z log loss)`` and learns z from how far each loss fell.

    After each step the same rows are looked at once more: the logit of a task whose loss fell more is lowered. The
    scale of the total is that of the plain sum. Losses that may be negative are refused.

    Args:
        rate: Learning rate of the logits of z (Adam).
        decay: Pull of the logits towards even weights (``weight_decay`` of that Adam).
    """

    rate: float = 0.025
    decay: float = 0.001

    def __post_init__(self) -> None:
        if not (0 < self.rate < 1 and 0 <= self.decay < 1):
            raise UsageError(
                f"famo's rate and decay are {self.rate}, {self.decay}", hint="give such as 0.025 and 0.001"
            )

    def start(self, setting: Setting) -> FamoRule:
        """Even weights."""
        return FamoRule(self, setting)


class FamoRule:
    """Keeps the logits of one run."""

    def __init__(self, made_by: Famo, setting: Setting) -> None:
        self.logits = {name: torch.zeros((), device=setting.device, requires_grad=True) for name in setting.names}
        self._adam = torch.optim.Adam(self.logits.values(), lr=made_by.rate, weight_decay=made_by.decay)
        self._before = torch.zeros(0)

    def total(self, losses: Losses) -> torch.Tensor:
        """See :class:`histotl.learn.balancing.base.LossRule`."""
        logs = log_losses(losses, "famo")
        self._before = logs.detach()
        z = self._shares(losses).detach()
        # The weight of a loss is z / loss up to a factor that makes the weights sum to T.
        factor = len(losses) / (z * torch.exp(-self._before)).sum()
        return factor * (z * logs).sum()

    def after_step(self, again: Callable[[], Losses]) -> None:
        """Lower the weight of tasks that gained more than the others."""
        losses = again()
        fell = self._before - log_losses(losses, "famo").detach()
        self._adam.zero_grad()
        self._shares(losses).backward(gradient=fell)  # type: ignore[no-untyped-call]
        self._adam.step()

    def _shares(self, losses: Losses) -> torch.Tensor:
        return torch.softmax(torch.stack([self.logits[name] for name in losses]), dim=0)
