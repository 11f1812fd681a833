"""The contract of an optimiser: how a batch becomes a step of the weights.

It is a frozen dataclass registered as ``@register("optimizer", name)`` whose :meth:`Optimizer.start` makes the object
that keeps the state of one training run. The arithmetic of the step itself is torch's (AdamW with the trainer's
schedule, ``Run.descent``); what is chosen here is where gradients are taken, and of which weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from histotl.learn._balancer import Balancer
from histotl.learn.batch import Batch
from histotl.learn.network import Network


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One training run.

    Args:
        network: What is trained.
        descent: Steps down the gradients that it finds at the weights; it leaves weights without a gradient alone.
        balancer: Turns a batch into gradients of all weights, by the balancing rule.
        seed: Of what is drawn.
    """

    network: Network
    descent: torch.optim.Optimizer
    balancer: Balancer
    seed: int = 0


class Stepper(Protocol):
    """The state of one run."""

    def step(self, batch: Batch) -> torch.Tensor:
        """Change the weights by one step; returns the training loss before it, a scalar without gradient."""


class Optimizer(Protocol):
    """Knows how to start a run."""

    def start(self, run: Run) -> Stepper:
        """Begin.

        Raises:
            UsageError: It does not go with the run's sharing or balancing.
        """
