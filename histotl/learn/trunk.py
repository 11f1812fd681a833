"""The trunk: what is trained between the vector of a bag and the linear layers of tasks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from histotl.learn.sharing.base import SharingShape, for_each_task, for_tasks

REDUNDANT_WIDTH = 128
"""Narrower vectors get less dropout on the trunk's input, in proportion."""


def entry_dropout(width: int, dropout: float) -> float:
    """Dropout on a trunk's input: a wide vector is redundant and is trained better with half of it hidden.

    Args:
        width: Of the input; of six colour numbers each counts.
        dropout: As asked for.
    """
    return dropout * min(1.0, width / REDUNDANT_WIDTH)


def build_trunk(width: int, hidden: int, dropout: float) -> tuple[nn.Module, int]:
    """A trunk of one layer, and the width of its result.

    Args:
        width: Of its input.
        hidden: Of the layer; 0 for none, which leaves the dropout.
        dropout: On its input (less where that is narrow) and output.
    """
    entry = entry_dropout(width, dropout)
    if not hidden:
        return nn.Dropout(entry), width
    return nn.Sequential(nn.Dropout(entry), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)), hidden


class TaskTrunks(nn.Module):
    """One trunk a task; without ``hidden`` every task gets the input.

    Dropout hides the same numbers from every task, so that a task more or less does not change what the others see.

    Args:
        shape: What it is built for.
    """

    def __init__(self, shape: SharingShape) -> None:
        super().__init__()
        self.out_dim = shape.hidden or shape.width
        self._entry, self._exit = entry_dropout(shape.width, shape.dropout), shape.dropout
        self._n_tasks = shape.n_tasks
        hidden = shape.hidden
        self.layers = for_each_task(shape, lambda: nn.Linear(shape.width, hidden)) if hidden else nn.ModuleList()

    def enter(self, bags: torch.Tensor) -> torch.Tensor:
        """Dropout on bag vectors, (B, d) or (B, t, d)."""
        kept = self._kept(bags[:, :1] if bags.ndim == 3 else bags, self._entry)
        return bags if kept is None else bags * kept

    def forward(self, entered: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Result of :meth:`enter` to t times (B, h)."""
        each = for_tasks(entered, self._n_tasks)
        if not len(self.layers):
            return each
        # One product a task and not one batched product: its bits must not depend on how many tasks there are.
        found = [F.gelu(layer(x)) for layer, x in zip(self.layers, each, strict=True)]
        kept = self._kept(found[0], self._exit)
        return tuple(found if kept is None else [x * kept for x in found])

    def weights(self) -> torch.Tensor:
        """Weights and biases of every trunk, float (t, w); w is 0 without ``hidden``."""
        if not len(self.layers):
            return torch.zeros(self._n_tasks, 0)
        return torch.stack([torch.cat([p.flatten() for p in layer.parameters()]) for layer in self.layers])

    def _kept(self, like: torch.Tensor, share: float) -> torch.Tensor | None:
        """Factors 0 and ``1 / (1 - share)``; None where nothing is hidden."""
        return F.dropout(torch.ones_like(like), share) if self.training and share else None
