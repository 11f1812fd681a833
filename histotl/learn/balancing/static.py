"""Fixed weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.balancing.base import FromLosses, Setting, stacked


@register("balancing", "static")
@dataclass(frozen=True, kw_only=True)
class Static:
    """Sum of the losses times fixed weights: the weighted sum of most papers, in the losses' own units.

    Args:
        weights: One a task, in the order of the tasks; empty for 1 each.
        normalised: Weigh losses divided by those of their constant predictors instead, as ``equal`` does.
    """

    weights: tuple[float, ...] = ()
    normalised: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= weight < math.inf for weight in self.weights) or (self.weights and not any(self.weights)):
            raise UsageError(f"static weights are {self.weights}", hint="give numbers of 0 or more, such as (1.0, 0.5)")

    def start(self, setting: Setting) -> FromLosses:
        """Bind the weights to the tasks.

        Raises:
            UsageError: There are more or fewer tasks than weights.
        """
        if self.weights and len(self.weights) != len(setting.names):
            fact = f"{len(self.weights)} static weights for {len(setting.names)} tasks ({', '.join(setting.names)})"
            raise UsageError(fact, hint="give one a task, in the order of the tasks")
        given = dict(zip(setting.names, self.weights or (1.0,) * len(setting.names), strict=True))
        factor = {n: given[n] * (1.0 if self.normalised else prior) for n, prior in setting.priors.items()}
        return FromLosses(make=lambda losses: stacked({n: factor[n] * loss for n, loss in losses.items()}).sum())
