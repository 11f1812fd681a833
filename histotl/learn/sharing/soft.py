"""A trunk a task, tied to those of the others (Duong et al. 2015; Evgeniou and Pontil 2004)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape
from histotl.learn.sharing.none import SeparateModule


@register("sharing", "soft")
@dataclass(frozen=True, kw_only=True)
class Soft:
    """A trunk a task and a penalty on how far their weights W are apart.

    - ``l1``, ``l2``: sum over pairs of tasks of that norm of ``W_i - W_j``.
    - ``mean``: sum over tasks of the squared distance to the mean of all W (mean-regularised).
    - ``plain_l1``, ``plain_l2``: sum over tasks of that norm of W itself. Surveys print this as soft sharing, but it
      ties no task to another.

    Without trunks (``hidden`` 0) there is nothing to tie.

    Args:
        norm: Which penalty.
        strength: Its factor. Norms of whole matrices are large: begin with 0.001 for ``mean`` and ``l2``, and with a
            hundredth of it for ``l1``.
    """

    norm: Literal["l1", "l2", "mean", "plain_l1", "plain_l2"] = "mean"
    strength: float = 0.001
    optimizer: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise UsageError(f"soft's strength is {self.strength}", hint="give 0 or more, such as 0.001")

    def build(self, shape: SharingShape) -> SoftModule:
        """Make the module."""
        return SoftModule(shape, self)


class SoftModule(SeparateModule):
    """A trunk a task, and the ties."""

    def __init__(self, shape: SharingShape, made_by: Soft) -> None:
        super().__init__(shape)
        self._norm, self._strength = made_by.norm, made_by.strength

    def penalty(self) -> torch.Tensor:
        """The ties."""
        weights = self.trunks.weights()
        if self._norm == "mean":
            return self._strength * (weights - weights.mean(dim=0)).square().sum()
        if self._norm.startswith("plain"):
            apart = weights
        else:
            first, second = torch.triu_indices(len(weights), len(weights), offset=1).unbind()
            apart = weights[first] - weights[second]
        norms: torch.Tensor = torch.linalg.vector_norm(apart, ord=int(self._norm[-1]), dim=1)
        return self._strength * norms.sum()
