"""The gradient at the tiles times the tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.registry import register
from histotl.learn.explain._gradients import along_path
from histotl.learn.explain.base import Question


@register("explain", "grad_x_input")
@dataclass(frozen=True, kw_only=True)
class GradXInput:
    """Gradient times input, the input counted from the mean training tile: one pass, first order only."""

    signed: ClassVar[bool] = True

    def scores(self, question: Question) -> torch.Tensor:
        """See :class:`histotl.learn.explain.base.Explainer`."""
        one = torch.ones(1, dtype=torch.float64)
        return along_path(question, one, one)
