"""Nothing is shared: every task has a trunk of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape
from histotl.learn.trunk import TaskTrunks


@register("sharing", "none")
@dataclass(frozen=True, kw_only=True)
class NoSharing:
    """A trunk a task: single-task networks side by side, what sharing has to be measured against.

    An aggregator with weights stands before the trunks and is still shared; train tasks one by one to part that too.
    """

    optimizer: ClassVar[str] = "adamw"

    def build(self, shape: SharingShape) -> SeparateModule:
        """Make the module."""
        return SeparateModule(shape)


class SeparateModule(nn.Module):
    """A trunk a task."""

    def __init__(self, shape: SharingShape) -> None:
        super().__init__()
        self.trunks = TaskTrunks(shape)
        self.out_dim = self.trunks.out_dim

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """The bag vectors, some numbers hidden by dropout."""
        return self.trunks.enter(bags)

    def own(self, common: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each task's trunk."""
        found: tuple[torch.Tensor, ...] = self.trunks(common)
        return found

    def penalty(self) -> torch.Tensor | None:
        """Nothing."""
        return None
