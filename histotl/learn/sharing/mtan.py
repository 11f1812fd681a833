"""A shared trunk that each task looks at through a gate of its own (Liu, Johns and Davison, CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape, for_each_task, for_tasks
from histotl.learn.trunk import build_trunk, entry_dropout


@register("sharing", "mtan")
@dataclass(frozen=True, kw_only=True)
class Mtan:
    """One trunk; each task multiplies its output z by a gate ``sigmoid(A [z, u])`` of z and the bag vector u.

    The idea of the multi-task attention network for vectors: what is shared and what is a task's own is learnt.
    """

    optimizer: ClassVar[str] = "adamw"

    def build(self, shape: SharingShape) -> MtanModule:
        """Make the module."""
        return MtanModule(shape)


class MtanModule(nn.Module):
    """A trunk and a gate a task."""

    def __init__(self, shape: SharingShape) -> None:
        super().__init__()
        self.entry = nn.Dropout(entry_dropout(shape.width, shape.dropout))
        trunk, self.out_dim = build_trunk(shape.width, shape.hidden, shape.dropout)
        # Its own entry dropout is left out: gates see the same hidden input.
        self.trunk = trunk[1:] if isinstance(trunk, nn.Sequential) else nn.Identity()
        self.gates = for_each_task(shape, lambda: nn.Linear(self.out_dim + shape.width, self.out_dim))

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """``[z, u]``."""
        entered = self.entry(bags)
        return torch.cat([self.trunk(entered), entered], dim=-1)

    def own(self, common: torch.Tensor) -> list[torch.Tensor]:
        """The trunk's output through each task's gate."""
        each = for_tasks(common, len(self.gates))
        return [x[:, : self.out_dim] * torch.sigmoid(gate(x)) for gate, x in zip(self.gates, each, strict=True)]

    def penalty(self) -> None:
        """Nothing."""
        return
