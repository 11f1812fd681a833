"""Several trunks that tasks mix by gates of their own (Ma et al., "Multi-gate mixture-of-experts", KDD 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape, for_each_task, for_tasks
from histotl.learn.trunk import build_trunk, entry_dropout


@register("sharing", "mmoe")
@dataclass(frozen=True, kw_only=True)
class Mmoe:
    """Multi-gate mixture of experts: every task reads a mean of E trunks, weighed anew for each bag by its own gate.

    Args:
        experts: E, the number of trunks.
    """

    experts: int = 4
    optimizer: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise UsageError(f"mmoe's experts is {self.experts}", hint="give 1 or more, such as 4")

    def build(self, shape: SharingShape) -> MmoeModule:
        """Make the module."""
        return MmoeModule(shape, self.experts)


class MmoeModule(nn.Module):
    """Experts, and a gate a task."""

    def __init__(self, shape: SharingShape, experts: int) -> None:
        super().__init__()
        self.entry = nn.Dropout(entry_dropout(shape.width, shape.dropout))
        self.out_dim, self._width = shape.hidden or shape.width, shape.width
        trunks = [build_trunk(shape.width, shape.hidden, shape.dropout)[0] for _ in range(experts)]
        self.experts = nn.ModuleList([t[1:] if isinstance(t, nn.Sequential) else nn.Identity() for t in trunks])
        self.gates = for_each_task(shape, lambda: nn.Linear(shape.width, experts))

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """Outputs of all experts, and the bag vectors that gates look at."""
        entered = self.entry(bags)
        return torch.cat([*(expert(entered) for expert in self.experts), entered], dim=-1)

    def own(self, common: torch.Tensor) -> list[torch.Tensor]:
        """Each task's mean of the experts."""
        found = []
        for gate, x in zip(self.gates, for_tasks(common, len(self.gates)), strict=True):
            outputs, entered = x[:, : -self._width], x[:, -self._width :]
            share = gate(entered).softmax(1)
            found.append((outputs.reshape(len(x), len(self.experts), -1) * share[..., None]).sum(dim=1))
        return found

    def penalty(self) -> None:
        """Nothing."""
        return
