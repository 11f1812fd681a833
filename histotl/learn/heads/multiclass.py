"""One of several classes: softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.heads.base import Nature


@register("head", "multiclass")
@dataclass(frozen=True, kw_only=True)
class Multiclass:
    """One of k classes: softmax cross-entropy.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, 0 to below 1.
    """

    label_smoothing: float = 0.0

    nature: ClassVar[Nature] = Nature(answers="classes", least=2, most=None, votes=True)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}", hint="give a share from 0 to below 1")

    def n_outputs(self, n_classes: int) -> int:
        """One logit a class."""
        return n_classes

    def row_losses(
        self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Cross-entropy of each row, times the weight of its class; with votes the mean over these."""
        if target.ndim == 2 and class_weight is not None:
            target = target * class_weight.to(target.dtype)
        rows = F.cross_entropy(
            outputs,
            target.to(outputs.dtype) if target.ndim == 2 else target,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return rows if class_weight is None or target.ndim == 2 else rows * class_weight[target]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k) softmax."""
        return outputs.softmax(dim=1)

    def adjusted(self, outputs: torch.Tensor, prior: torch.Tensor, tau: float) -> torch.Tensor:
        """Logits plus ``tau`` times the log prior."""
        return outputs + tau * torch.log(prior)
