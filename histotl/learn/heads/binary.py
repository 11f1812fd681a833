"""Two classes: one logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from histotl.core.registry import register
from histotl.learn.heads.base import Nature


@register("head", "binary")
@dataclass(frozen=True, kw_only=True)
class Binary:
    """Negative or positive: logistic loss on one logit."""

    nature: ClassVar[Nature] = Nature(answers="classes", least=2, most=2, votes=True, worst=True)

    def n_outputs(self, n_classes: int) -> int:  # noqa: ARG002
        """One logit."""
        return 1

    def row_losses(
        self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Negative log-likelihood of each row, times the weight of its class; with votes the mean over these."""
        if target.ndim == 2:
            weighted = target if class_weight is None else target * class_weight.to(target.dtype)
            return -(weighted * F.logsigmoid(torch.cat([-outputs, outputs], dim=1))).sum(dim=1)
        rows = F.binary_cross_entropy_with_logits(outputs[:, 0], target.to(outputs.dtype), reduction="none")
        return rows if class_weight is None else rows * class_weight[target]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, 2): negative, positive."""
        return torch.cat([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=1)

    def adjusted(self, outputs: torch.Tensor, prior: torch.Tensor, tau: float) -> torch.Tensor:
        """The logit plus ``tau`` times that of the prior."""
        return outputs + tau * torch.log(prior[1] / prior[0])
