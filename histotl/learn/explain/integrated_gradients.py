"""Gradients on the way from the mean tile to the tiles.

Sundararajan, Taly, Yan 2017, "Axiomatic attribution for deep networks".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.explain._gradients import along_path
from histotl.learn.explain.base import Question


@register("explain", "integrated_gradients")
@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """Integrated gradients from a slide of mean training tiles; works for every aggregator.

    The scores sum to the answer of the slide less the answer of as many mean tiles (completeness), up to the error of
    the quadrature.

    Args:
        steps: Points of the Gauss-Legendre quadrature; each costs one pass forward and one back for each class.
    """

    steps: int = 32
    signed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"integrated_gradients: steps is {self.steps}", hint="give 1 or more, such as 32")

    def scores(self, question: Question) -> torch.Tensor:
        """See :class:`histotl.learn.explain.base.Explainer`."""
        nodes, shares = np.polynomial.legendre.leggauss(self.steps)
        return along_path(question, torch.from_numpy((nodes + 1) / 2), torch.from_numpy(shares / 2))
