"""Sharpness-aware minimisation (Foret et al., ICLR 2021; adaptive: Kwon et al., ICML 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn._gradients import gradients, moved, uphill
from histotl.learn.balancing.base import stacked
from histotl.learn.batch import Batch
from histotl.learn.optimizers.base import Run


@register("optimizer", "sam")
@dataclass(frozen=True, kw_only=True)
class Sam:
    """Steps by the gradient at the worst point nearby: the weights moved by ``rho`` up the plain sum of the losses.

    Twice the passes of ``adamw``. The balancing rule is asked once a step, at the moved weights.

    Args:
        rho: How far, 0 for the plain step. Large values can hold training up at points that are no minimum.
        adaptive: Measure ``rho`` in units of each weight's own size; it is then some ten times larger.
    """

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise UsageError(f"sam's rho is {self.rho}", hint="give 0 or more, such as 0.05")

    def start(self, run: Run) -> SamSteps:
        """Begin."""
        return SamSteps(run, self)


class SamSteps:
    """Steps of one run."""

    def __init__(self, run: Run, made_by: Sam) -> None:
        self._descent, self._balancer, self._made_by = run.descent, run.balancer, made_by

    def step(self, batch: Batch) -> torch.Tensor:
        """See :class:`histotl.learn.optimizers.base.Stepper`."""
        output = batch.run()
        loss, added = stacked(batch.losses(output)).sum(), batch.added(output)
        loss = loss if added is None else loss + added
        parameters = self._balancer.parameters
        climb = uphill(parameters, gradients(loss, parameters), self._made_by.rho, adaptive=self._made_by.adaptive)
        with moved(parameters, climb):
            self._balancer.backward(batch)
        self._descent.step()
        self._balancer.after_step(batch)
        return loss.detach()
