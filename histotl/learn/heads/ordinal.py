"""Ordered classes: a chain of conditional steps (CORN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from histotl.core.registry import register


@register("head", "ordinal")
@dataclass(frozen=True, kw_only=True)
class Ordinal:
    """Grades in order: P(above k | at least k) for each step k, as in CORN (Shi, Cao, Raschka 2021).

    Output k is the logit of "above grade k" for cases of at least grade k, so

        P(y = k) = (1 - s_k) * s_0 * … * s_{k-1},   s = sigmoid(outputs),

    which is a distribution for any outputs. The loss of a row is -log P(y); its mean is CORN's loss up to the factor
    (number of conditional terms) / (number of rows).
    """

    def n_outputs(self, n_classes: int) -> int:
        """One logit a step."""
        return n_classes - 1

    def loss(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:
        """Negative log-likelihood of each row's grade, times the weight of the grade."""
        step = torch.arange(outputs.shape[1], device=outputs.device)
        above, reached = target[:, None] > step, target[:, None] >= step
        terms = F.binary_cross_entropy_with_logits(outputs, above.to(outputs.dtype), reduction="none")
        rows = (terms * reached).sum(dim=1)
        return rows if class_weight is None else rows * class_weight[target]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k), lowest grade first."""
        passed = torch.cumprod(torch.sigmoid(outputs), dim=1)
        stopped = torch.sigmoid(-outputs)
        first = torch.ones_like(passed[:, :1])
        reached = torch.cat([first, passed[:, :-1]], dim=1)
        return torch.cat([reached * stopped, passed[:, -1:]], dim=1)
