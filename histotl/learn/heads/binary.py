"""Two classes: one logit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from histotl.core.registry import register


@register("head", "binary")
@dataclass(frozen=True, kw_only=True)
class Binary:
    """Negative or positive: logistic loss on one logit."""

    def n_outputs(self, n_classes: int) -> int:  # noqa: ARG002
        """One logit."""
        return 1

    def loss(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:
        """Negative log-likelihood of each row, times the weight of its class."""
        rows = F.binary_cross_entropy_with_logits(outputs[:, 0], target.to(outputs.dtype), reduction="none")
        return rows if class_weight is None else rows * class_weight[target]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, 2): negative, positive."""
        return torch.cat([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=1)
