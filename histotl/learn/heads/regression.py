"""A number: one output in units of the training labels' standard deviation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from histotl.core.registry import register


@register("head", "regression")
@dataclass(frozen=True, kw_only=True)
class Regression:
    """A standardised number: Huber's loss, quadratic near zero and linear beyond ``delta`` standard deviations.

    Args:
        delta: Where the loss turns linear, in standard deviations of the training labels.
    """

    delta: float = 1.0

    def n_outputs(self, n_classes: int) -> int:  # noqa: ARG002
        """One number."""
        return 1

    def loss(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002
        """Huber's loss of each row."""
        return F.huber_loss(outputs[:, 0], target.to(outputs.dtype), reduction="none", delta=self.delta)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """The standardised value (n, 1)."""
        return outputs
