"""The contract of an aggregator: tiles of a slide become one vector, or one for each task, or answers.

An aggregator is a frozen dataclass registered as ``@register("aggregator", name)`` whose :meth:`Aggregator.build` makes
the module. Bags are packed, never padded: all tiles of all slides in one matrix with row offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

Outputs = tuple[tuple[str, int], ...]
"""(task name, o: outputs of the task) in the order of the tasks."""


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """Result for B bags with N tiles in all; t tasks, o outputs of a task.

    Args:
        bags: float (B, d), one vector a bag; or (B, t, d), one for each task.
        weights: float (N,), each tile's share in its bag (sums to 1 within a bag), or (N, t) where every task weighs
            the tiles in its own way; None where there is no such thing.
        direct: Task -> (B, o): the answers themselves, of an aggregator that gives them instead of vectors. Trunk and
            linear layers are then not asked for these tasks.
        parts: Task -> (N, o): each tile's part of ``direct``. They sum over a bag to ``direct`` less ``offset``.
        offset: Task -> (o,): what is in ``direct`` and in no tile's part.
        state: What :meth:`Supervised.auxiliary` needs of this pass.
        values: float (N, d), what ``weights`` (N,) average to ``bags``. Given only where a tile's value, and its
            weight before it is normalised, depend on that tile alone: a bag without tile i is then known from ``bags``.
    """

    bags: torch.Tensor
    weights: torch.Tensor | None = None
    direct: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    offset: Mapping[str, torch.Tensor] = field(default_factory=dict)
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    values: torch.Tensor | None = None


def split_outputs(values: torch.Tensor, outputs: Outputs) -> dict[str, torch.Tensor]:
    """Cut the last axis, the outputs of all tasks one after the other, into task -> (…, o)."""
    parts = torch.split(values, [n for _, n in outputs], dim=-1)
    return {name: part for (name, _), part in zip(outputs, parts, strict=True)}


def task_means(values: torch.Tensor, outputs: Outputs) -> torch.Tensor:
    """Mean over the outputs of each task: (n, outputs of all tasks, …) into (n, t, …)."""
    parts = torch.split(values, [n for _, n in outputs], dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1)


class AggregatorModule(Protocol):
    """The built module (an ``nn.Module``)."""

    @property
    def out_dim(self) -> int:
        """D of the bag vectors."""

    def __call__(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """Aggregate.

        Args:
            x: float (N, D) tile vectors of all bags, bag after bag.
            offsets: int64 (B + 1,): bag b holds rows ``offsets[b]:offsets[b + 1]``; no bag is empty.
            coords: int64 (N, 2) level-0 corners, for aggregators that look at positions; with a third column, which
                says the slide of each tile, where bags join several (:func:`histotl.learn.lattice.slides_of`).
        """


class Judge(Protocol):
    """The labels of B bags, for aggregators with losses of their own."""

    def loss(self, outputs: Mapping[str, torch.Tensor], owner: torch.Tensor | None = None) -> torch.Tensor:
        """Joint loss of answers, a scalar: the same that the network's own answers get.

        Args:
            outputs: Task -> float (P, o).
            owner: int64 (P,): the bag that each row answers for; None where row p answers for bag p.
        """

    def classes(self, task: str) -> torch.Tensor | None:
        """int64 (B,) class of each bag, -1 where the label is missing; None for a task without classes."""


@runtime_checkable
class Supervised(Protocol):
    """A module that adds a loss of its own while it is trained."""

    def auxiliary(self, found: Aggregated, judge: Judge) -> torch.Tensor:
        """A scalar that is added to the training loss.

        Args:
            found: Result of this module's call in the same step.
            judge: The labels.
        """


class Aggregator(Protocol):
    """Knows how to build the module."""

    def build(self, in_dim: int, outputs: Outputs) -> AggregatorModule:
        """Make a module for tile vectors of length ``in_dim`` and for tasks with these outputs."""
