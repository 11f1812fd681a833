"""The plain step (Loshchilov and Hutter, ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.core.registry import register
from histotl.learn.batch import Batch
from histotl.learn.optimizers.base import Run


@register("optimizer", "adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """One gradient at the weights as they are, one step of AdamW."""

    def start(self, run: Run) -> AdamWSteps:
        """Begin."""
        return AdamWSteps(run)


class AdamWSteps:
    """Steps of one run."""

    def __init__(self, run: Run) -> None:
        self._descent, self._balancer = run.descent, run.balancer

    def step(self, batch: Batch) -> torch.Tensor:
        """See :class:`histotl.learn.optimizers.base.Stepper`."""
        loss = self._balancer.backward(batch)
        self._descent.step()
        self._balancer.after_step(batch)
        return loss
