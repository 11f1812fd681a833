"""Losses of ordered classes. n rows, k grades; a rule says how many outputs it wants and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

MIN_GAP = 1e-6
"""Least distance of two cut points: none is lost, and the logarithm of a grade's probability stays finite."""


class Rule(Protocol):
    """One way to learn grades."""

    def n_outputs(self, n_classes: int) -> int:
        """Outputs for k grades."""

    def losses(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss (n,) of outputs (n, o) for grades int64 (n,)."""

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k), lowest grade first."""


class Corn:
    """P(above k | at least k) for each step k (Shi, Cao, Raschka 2021)."""

    def n_outputs(self, n_classes: int) -> int:
        """One logit a step."""
        return n_classes - 1

    def losses(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """-log P(y); its mean is CORN's loss up to the factor (number of conditional terms) / (number of rows)."""
        step = torch.arange(outputs.shape[1], device=outputs.device)
        above, reached = target[:, None] > step, target[:, None] >= step
        terms = F.binary_cross_entropy_with_logits(outputs, above.to(outputs.dtype), reduction="none")
        return (terms * reached).sum(dim=1)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """P(y = k) = (1 - s_k) * s_0 * … * s_{k-1} with s = sigmoid(outputs), a distribution for any outputs."""
        passed = torch.cumprod(torch.sigmoid(outputs), dim=1)
        stopped = torch.sigmoid(-outputs)
        first = torch.ones_like(passed[:, :1])
        reached = torch.cat([first, passed[:, :-1]], dim=1)
        return torch.cat([reached * stopped, passed[:, -1:]], dim=1)


class Coral:
    """P(above k) for each step k from one score and a bias a step (Cao, Mirjalili, Raschka 2020)."""

    def n_outputs(self, n_classes: int) -> int:
        """One logit a step."""
        return n_classes - 1

    def losses(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum over steps of the logistic loss of "above it"."""
        step = torch.arange(outputs.shape[1], device=outputs.device)
        above = (target[:, None] > step).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, above, reduction="none").sum(dim=1)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Differences of P(above k), which are made to fall where biases out of order would let them rise."""
        above = torch.cummin(torch.sigmoid(outputs), dim=1).values
        ends = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
        return torch.cat([ends[0], above], dim=1) - torch.cat([above, ends[1]], dim=1)


class CumulativeLink:
    """Proportional odds (McCullagh 1980): P(above k) = sigmoid(score - cut k), with cuts in order by construction.

    Output 0 is the score less the first cut; softplus of output k is the distance from cut k - 1 to cut k.
    """

    def n_outputs(self, n_classes: int) -> int:
        """The score, and the k - 2 distances."""
        return n_classes - 1

    def _above(self, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of P(above k) (n, k - 1), and the distances (n, k - 2)."""
        gaps = F.softplus(outputs[:, 1:]) + MIN_GAP
        return torch.cat([outputs[:, :1], outputs[:, :1] - torch.cumsum(gaps, dim=1)], dim=1), gaps

    def losses(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """-log P(y), by sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which loses no digits."""
        above, gaps = self._above(outputs)
        nothing = torch.zeros_like(above[:, :1])
        from_below = torch.cat([nothing, F.logsigmoid(above)], dim=1)
        from_above = torch.cat([F.logsigmoid(-above), nothing], dim=1)
        between = torch.cat([nothing, torch.log(-torch.expm1(-gaps)), nothing], dim=1)
        return -(from_below + from_above + between).gather(1, target[:, None])[:, 0]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Differences of P(above k)."""
        above = torch.sigmoid(self._above(outputs)[0])
        ends = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
        return torch.cat([ends[0], above], dim=1) - torch.cat([above, ends[1]], dim=1)


@dataclass(frozen=True, kw_only=True)
class ClassAndValue:
    """Cross-entropy of the class and squared error of the grade's value, both learnt (Vuong et al. 2020).

    Args:
        weight: Of the squared error, in squared grades.
    """

    weight: float

    def n_outputs(self, n_classes: int) -> int:
        """One logit a grade, and the value."""
        return n_classes + 1

    def losses(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of both losses."""
        square = (outputs[:, -1] - target.to(outputs.dtype)) ** 2
        return F.cross_entropy(outputs[:, :-1], target, reduction="none") + self.weight * square

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Softmax; the value only helps to learn."""
        return outputs[:, :-1].softmax(dim=1)


class Emd2:
    """Squared earth mover's distance on a line: of the cumulative distributions (Hou, Yu, Samaras 2016)."""

    def n_outputs(self, n_classes: int) -> int:
        """One logit a grade."""
        return n_classes

    def losses(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum over grades of the squared difference of P(at most k), predicted and true."""
        step = torch.arange(outputs.shape[1], device=outputs.device)
        true = (target[:, None] <= step).to(outputs.dtype)
        return ((torch.cumsum(outputs.softmax(dim=1), dim=1) - true) ** 2).sum(dim=1)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Softmax."""
        return outputs.softmax(dim=1)


class SharedScore(nn.Module):
    """One score for all outputs, and a bias each: the rows differ in one direction only.

    Args:
        width: Of the input.
        outputs: o.
        everywhere: Whether the score is in every output, or in the first alone.
    """

    def __init__(self, width: int, outputs: int, *, everywhere: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(outputs))
        share = torch.ones(outputs) if everywhere else torch.eye(outputs)[0]
        self.register_buffer("share", share, persistent=False)
        self.share: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, width) -> (n, o)."""
        return F.linear(x, self.weight) * self.share + self.bias
