"""Every task counts the same, measured against its own constant predictor."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.registry import register
from histotl.learn.balancing.base import FromLosses, Setting, stacked


@register("balancing", "equal")
@dataclass(frozen=True, kw_only=True)
class Equal:
    """Sum of the losses, each divided by the loss of its constant predictor, so that a useless task counts 1.

    With ordinary regularisation the plain sum matches specialised optimisers (Kurin et al., NeurIPS 2022).
    """

    def start(self, setting: Setting) -> FromLosses:  # noqa: ARG002
        """The sum over the tasks that have labels in a step."""
        return FromLosses(make=lambda losses: stacked(losses).sum())
