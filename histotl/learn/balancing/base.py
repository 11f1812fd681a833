"""The contract of a loss-balancing rule: losses of several tasks become one number to descend.

A rule is a frozen dataclass registered as ``@register("balancing", name)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class Balancing(Protocol):
    """Weighs tasks."""

    def total(self, losses: Mapping[str, torch.Tensor], priors: Mapping[str, float]) -> torch.Tensor:
        """Combine the mean losses of the tasks that have labels in this step.

        Args:
            losses: Task name -> scalar loss over its labelled rows.
            priors: Task name -> loss of the constant predictor on the training labels (entropy of the class prior;
                variance for squared error), which makes units comparable.
        """
