"""One trunk for all tasks (Caruana, "Multitask learning", 1997)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape, for_tasks
from histotl.learn.trunk import build_trunk


@register("sharing", "hard")
@dataclass(frozen=True, kw_only=True)
class Hard:
    """One trunk that all tasks share; each task has a linear layer of its own behind it."""

    optimizer: ClassVar[str] = "adamw"

    def build(self, shape: SharingShape) -> HardModule:
        """Make the module."""
        return HardModule(shape)


class HardModule(nn.Module):
    """The same vectors for every task."""

    def __init__(self, shape: SharingShape) -> None:
        super().__init__()
        self.trunk, self.out_dim = build_trunk(shape.width, shape.hidden, shape.dropout)
        self._n_tasks = shape.n_tasks

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """The trunk's output."""
        shared: torch.Tensor = self.trunk(bags)
        return shared

    def own(self, common: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same for each task."""
        return for_tasks(common, self._n_tasks)

    def penalty(self) -> None:
        """Nothing."""
        return
