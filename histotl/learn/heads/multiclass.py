"""One of several classes: softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from histotl.core.registry import register


@register("head", "multiclass")
@dataclass(frozen=True, kw_only=True)
class Multiclass:
    """One of k classes: softmax cross-entropy.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, 0 to below 1.
    """

    label_smoothing: float = 0.0

    def n_outputs(self, n_classes: int) -> int:
        """One logit a class."""
        return n_classes

    def loss(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:
        """Cross-entropy of each row, times the weight of its class."""
        rows = F.cross_entropy(outputs, target, reduction="none", label_smoothing=self.label_smoothing)
        return rows if class_weight is None else rows * class_weight[target]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k) softmax."""
        return outputs.softmax(dim=1)
