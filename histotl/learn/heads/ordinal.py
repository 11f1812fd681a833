"""Ordered classes, by one of five losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.heads._grades import ClassAndValue, Coral, Corn, CumulativeLink, Emd2, Rule, SharedScore
from histotl.learn.heads.base import Nature


@register("head", "ordinal")
@dataclass(frozen=True, kw_only=True)
class Ordinal:
    """Grades in order: by default P(above k | at least k) for each step k, as in CORN.

    Args:
        loss: ``corn``: a chain of conditional steps (Shi et al. 2021). ``coral``: one score with a bias a step (Cao et
            al. 2020). ``cumulative_link``: proportional odds, one score and cut points in order (McCullagh 1980).
            ``ce+regression``: cross-entropy and squared error of the grade's value (Vuong et al. 2020). ``emd2``:
            squared earth mover's distance (Hou et al. 2016).
        value_weight: Of the squared error in ``ce+regression``.
    """

    loss: Literal["corn", "coral", "cumulative_link", "ce+regression", "emd2"] = "corn"
    value_weight: float = 1.0

    nature: ClassVar[Nature] = Nature(answers="classes", least=3, most=None, ordered=True, worst=True)

    def __post_init__(self) -> None:
        if not self.value_weight >= 0:
            raise UsageError(f"value_weight is {self.value_weight}", hint="give 0 or more, such as 1.0")

    @property
    def _rule(self) -> Rule:
        rules: dict[str, Rule] = {
            "corn": Corn(),
            "coral": Coral(),
            "cumulative_link": CumulativeLink(),
            "ce+regression": ClassAndValue(weight=self.value_weight),
            "emd2": Emd2(),
        }
        return rules[self.loss]

    def n_outputs(self, n_classes: int) -> int:
        """As the loss wants."""
        return self._rule.n_outputs(n_classes)

    def layer(self, width: int, outputs: int) -> nn.Module:
        """Linear; of ``coral`` and ``cumulative_link`` one score, so that the odds are proportional."""
        if self.loss in ("coral", "cumulative_link"):
            return SharedScore(width, outputs, everywhere=self.loss == "coral")
        return nn.Linear(width, outputs)

    def row_losses(
        self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Loss of each row, times the weight of its grade."""
        rows = self._rule.losses(outputs, target)
        return rows if class_weight is None else rows * class_weight[target]

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k), lowest grade first."""
        return self._rule.probabilities(outputs)

    def decide(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The median grade, which is the one of least expected distance, and CORN's own rule (P(above) > 0.5).

        ``ce+regression`` takes the most probable grade, as its authors do.
        """
        if self.loss == "ce+regression":
            return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
        below = np.cumsum(probabilities, axis=1)[:, :-1] < 0.5
        return np.asarray(below.sum(axis=1), dtype=np.int64)
