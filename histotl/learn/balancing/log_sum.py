"""The sum of logarithms, in which no task's scale counts (Chennupati et al. 2019; Lin et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.registry import register
from histotl.learn.balancing.base import FromLosses, Setting, log_losses


@register("balancing", "log_sum")
@dataclass(frozen=True, kw_only=True)
class LogSum:
    """Sum of the logarithms of the losses: relative progress counts the same everywhere.

    Weights of tasks have no effect, and a loss that may be negative is refused.
    """

    def start(self, setting: Setting) -> FromLosses:  # noqa: ARG002
        """The sum over the tasks that have labels in a step."""
        return FromLosses(make=lambda losses: log_losses(losses, "log_sum").sum())
