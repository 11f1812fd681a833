"""The contract of a way of sharing: what lies between the vectors of bags and the linear layer of each task.

It is a frozen dataclass registered as ``@register("sharing", name)`` whose :meth:`Sharing.build` makes the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class SharingShape:
    """What a module is built for.

    Args:
        width: d of the bag vectors.
        hidden: Width of each trunk, 0 for none.
        dropout: On a trunk's input (less where it is narrow) and output.
        n_tasks: t, at least 1.
    """

    width: int
    hidden: int
    dropout: float
    n_tasks: int


class SharingModule(Protocol):
    """The built module (an ``nn.Module``)."""

    @property
    def out_dim(self) -> int:
        """h, the width of what each task's linear layer gets."""

    def __call__(self, bags: torch.Tensor) -> torch.Tensor:
        """What each task's linear layer gets.

        Args:
            bags: float (B, d), one vector a bag; or (B, t, d), one for each task.

        Returns:
            float (B, t, h).
        """

    def penalty(self) -> torch.Tensor | None:
        """What is added to the training loss for the module's own weights, a scalar; None for nothing."""


class Sharing(Protocol):
    """Knows how to build the module."""

    def build(self, shape: SharingShape) -> SharingModule:
        """Make a module. Its first weights come from torch's global stream, which the caller has seeded."""
