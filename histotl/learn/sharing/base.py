"""The contract of a way of sharing: what lies between the vectors of bags and the linear layer of each task.

It is a frozen dataclass registered as ``@register("sharing", name)`` whose :meth:`Sharing.build` makes the module. The
module has two halves: `SharingModule.common` makes what all tasks read, `SharingModule.own` makes of it what each
task's linear layer gets. Rules that balance gradients measure them where the halves meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from histotl.learn.seeds import own_seed, seeded


@dataclass(frozen=True, kw_only=True)
class SharingShape:
    """What a module is built for.

    Args:
        width: d of the bag vectors.
        hidden: Width of each trunk, 0 for none.
        dropout: On a trunk's input (less where it is narrow) and output.
        names: Of the t tasks, at least one.
        seed: Of the first weights.
    """

    width: int
    hidden: int
    dropout: float
    names: tuple[str, ...]
    seed: int = 0

    @property
    def n_tasks(self) -> int:
        """Number of tasks, t."""
        return len(self.names)


class SharingModule(Protocol):
    """The built module (an ``nn.Module``)."""

    @property
    def out_dim(self) -> int:
        """h, the width of what each task's linear layer gets."""

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """What all tasks read.

        Args:
            bags: float (B, d), one vector a bag; or (B, t, d), one for each task.

        Returns:
            float (B, c); or (B, t, c) where each task has a vector of its own, and none can be said to be shared.
        """

    def own(self, common: torch.Tensor) -> Sequence[torch.Tensor]:
        """What each task's linear layer gets: t times float (B, h).

        They are not one tensor, so that a task's loss reaches the weights that it depends on and no others.

        Args:
            common: From :meth:`common`.
        """

    def penalty(self) -> torch.Tensor | None:
        """What is added to the training loss for the module's own weights, a scalar; None for nothing."""


class Sharing(Protocol):
    """Knows how to build the module."""

    optimizer: ClassVar[str]
    """Spec of the optimiser that it is trained with where the settings name none; 'adamw' for most."""

    def build(self, shape: SharingShape) -> SharingModule:
        """Make a module.

        First weights of what is shared come from torch's global stream, which the caller has seeded; those of what is a
        task's own from :func:`for_each_task`, so that a task more or less does not change the others.
        """


def for_each_task(shape: SharingShape, make: Callable[[], nn.Module]) -> nn.ModuleList:
    """One module a task, whose first weights depend on the seed and on the task's own name only."""
    modules = []
    for name in shape.names:
        with seeded(own_seed(shape.seed, "sharing", name)):
            modules.append(make())
    return nn.ModuleList(modules)


def for_tasks(vectors: torch.Tensor, n_tasks: int) -> tuple[torch.Tensor, ...]:
    """Each task's vectors (B, d), of (B, t, d) or, the same for all, of (B, d)."""
    return vectors.unbind(1) if vectors.ndim == 3 else (vectors,) * n_tasks
