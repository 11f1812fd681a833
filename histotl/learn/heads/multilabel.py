"""Any of several labels: one logit each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from histotl.core.registry import register
from histotl.learn.heads.base import Nature


@register("head", "multilabel")
@dataclass(frozen=True, kw_only=True)
class Multilabel:
    """Labels that do not exclude one another: a logistic loss for each, and only where it is known."""

    nature: ClassVar[Nature] = Nature(answers="labels", least=2, most=None, worst=True)

    def n_outputs(self, n_classes: int) -> int:
        """One logit a label."""
        return n_classes

    def row_losses(
        self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Negative log-likelihood (n, k) of each entry, times the weight of its label's positives or negatives."""
        known = target.nan_to_num(0.0).to(outputs.dtype)
        entries = F.binary_cross_entropy_with_logits(outputs, known, reduction="none")
        if class_weight is None:
            return entries
        negative, positive = class_weight.to(outputs.dtype).reshape(2, -1)
        return entries * torch.where(known > 0, positive, negative)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k), each by itself."""
        return torch.sigmoid(outputs)

    def adjusted(self, outputs: torch.Tensor, prior: torch.Tensor, tau: float) -> torch.Tensor:
        """Logits plus ``tau`` times those of the priors of the labels."""
        return outputs + tau * torch.logit(prior)
