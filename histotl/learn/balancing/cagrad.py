"""The mean gradient, bent towards the worst-off task (Liu et al., NeurIPS 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn._gramian import cagrad
from histotl.learn.balancing.base import FromGramian, Setting


@register("balancing", "cagrad")
@dataclass(frozen=True, kw_only=True)
class CAGrad:
    """Conflict-averse gradient: the best for the worst-off task within a ball around the mean gradient.

    Args:
        c: Radius of the ball in lengths of the mean gradient; 0 is the plain sum.
    """

    c: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.c < math.inf:
            raise UsageError(f"cagrad's c is {self.c}", hint="give 0 or more, such as 0.4")

    def start(self, setting: Setting) -> FromGramian:  # noqa: ARG002
        """The rule has no state."""
        return FromGramian(solve=lambda gramian: cagrad(gramian, self.c))
