"""Tasks that read each other's features without changing them (after the published description of MT-CooL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape, for_each_task
from histotl.learn.sharing.cross_attention import OthersAttention
from histotl.learn.trunk import TaskTrunks


@register("sharing", "cooperative")
@dataclass(frozen=True, kw_only=True)
class Cooperative:
    """A trunk a task; each task reads its own features z and, without a gradient to them, those of the others.

    After the published description of MT-CooL (Wu et al., "Multi-Task Cooperative Learning via Flat Minima Searching",
    IEEE TMI 2025; its abstract and first page): each task is a level of its own with the others' found features as its
    setting. Tasks are trained in turn by the optimiser ``cooperative_flat``, the default here, which looks for minima
    that stay flat when the others' features move. No code of the authors is known.

    Args:
        exchange: What a task reads of the others: their 'mean', all of them ('concat'), what its 'attention' picks, or
            'none', which leaves single-task networks.
    """

    exchange: Literal["mean", "concat", "attention", "none"] = "mean"
    optimizer: ClassVar[str] = "cooperative_flat"

    def build(self, shape: SharingShape) -> CooperativeModule:
        """Make the module."""
        return CooperativeModule(shape, self.exchange)


class CooperativeModule(nn.Module):
    """Trunks, and what passes between them."""

    def __init__(self, shape: SharingShape, exchange: str) -> None:
        super().__init__()
        self.trunks = TaskTrunks(shape)
        width, self._exchange = self.trunks.out_dim, exchange if shape.n_tasks > 1 else "none"
        self.out_dim = width * {"none": 1, "concat": shape.n_tasks}.get(self._exchange, 2)
        self.looks = nn.ModuleList()
        if self._exchange == "attention":
            self.looks = for_each_task(shape, lambda: OthersAttention(width, 1))

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """The bag vectors, some numbers hidden by dropout."""
        return self.trunks.enter(bags)

    def features(self, common: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Every task's features, t times (B, h)."""
        found: tuple[torch.Tensor, ...] = self.trunks(common)
        return found

    def own(self, common: torch.Tensor) -> list[torch.Tensor]:
        """Each task's features and what it reads of the others', which get no gradient from it."""
        each = self.features(common)
        seen = torch.stack(each, dim=1).detach()
        return [self.read(i, features, seen) for i, features in enumerate(each)]

    def read(self, task: int, features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """What a task's linear layer gets.

        Args:
            task: Its place.
            features: (B, h), its own.
            seen: (B, t, h), everybody's; its own row is not looked at.
        """
        if self._exchange == "none":
            return features
        others = [i for i in range(seen.shape[1]) if i != task]
        if self._exchange == "concat":
            return torch.cat([features, seen[:, others].flatten(1)], dim=1)
        if self._exchange == "mean":
            return torch.cat([features, seen[:, others].mean(dim=1)], dim=1)
        tokens = torch.stack([features if i == task else seen[:, i] for i in range(seen.shape[1])], dim=1)
        return torch.cat([features, self.looks[task](tokens, seen)[:, task]], dim=1)

    def penalty(self) -> None:
        """Nothing."""
        return
