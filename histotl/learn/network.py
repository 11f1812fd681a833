"""The network: standardise, aggregate, a trunk that all tasks share, one linear layer a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast
from zlib import crc32

import torch
from torch import nn

from histotl.core.registry import create
from histotl.learn.aggregators.base import Aggregated, Aggregator, AggregatorModule

REDUNDANT_WIDTH = 128
"""Narrower vectors get less dropout on the trunk's input, in proportion."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that fixes the shapes of a network.

    Args:
        in_dim: Length of a feature vector.
        aggregator: Spec of the aggregator; empty at tile level.
        hidden: Width of the trunk, 0 for none.
        dropout: On the trunk's input (less where it is narrow) and output.
        outputs: (task name, outputs of its linear layer), in the order of the tasks.
    """

    in_dim: int
    aggregator: str
    hidden: int
    dropout: float
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Result for B bags with N tiles in all.

    Args:
        tasks: Task name -> float (B, o).
        weights: float (N,), each tile's share in its bag, or None.
    """

    tasks: dict[str, torch.Tensor]
    weights: torch.Tensor | None = None


class Network(nn.Module):
    """Bags in, one output vector a task out.

    Each task's first weights depend on the seed and on the task's own name only, so that a task more or less does not
    change the others.

    Args:
        architecture: Shapes.
        seed: Of the first weights.
    """

    mean: torch.Tensor
    std: torch.Tensor
    bag_mean: torch.Tensor
    bag_std: torch.Tensor

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        super().__init__()
        self.names = tuple(name for name, _ in architecture.outputs)
        with seeded(seed):
            self.aggregator = _aggregator(architecture)
            width = architecture.in_dim if self.aggregator is None else self.aggregator.out_dim
            self.trunk, out = _trunk(width, architecture)
            self.heads = nn.ModuleList([_head(out, n, name, seed) for name, n in architecture.outputs])
        self.register_buffer("mean", torch.zeros(architecture.in_dim))
        self.register_buffer("std", torch.ones(architecture.in_dim))
        # Used only behind an aggregator without parameters, whose output scale is known before training.
        self.register_buffer("bag_mean", torch.zeros(width))
        self.register_buffer("bag_std", torch.ones(width))

    @property
    def pools_first(self) -> bool:
        """Whether bag vectors do not depend on anything that is trained, so that pooling once is enough."""
        return self.aggregator is None or not any(True for _ in cast("nn.Module", self.aggregator).parameters())

    def pool(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """Standardise tiles and aggregate them; bags (B, d) before the trunk."""
        x = (x - self.mean) / self.std
        if self.aggregator is None:
            return Aggregated(bags=x)
        return self.aggregator(x, offsets, coords)

    def answer(self, bags: torch.Tensor) -> dict[str, torch.Tensor]:
        """Trunk and heads on bag vectors (B, d)."""
        shared = self.trunk((bags - self.bag_mean) / self.bag_std)
        return {name: head(shared) for name, head in zip(self.names, self.heads, strict=True)}

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Output:
        """Float32 (N, D) tiles of packed bags into outputs."""
        pooled = self.pool(x, offsets, coords)
        return Output(tasks=self.answer(pooled.bags), weights=pooled.weights)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch from a seed within the block; the caller's own stream goes on undisturbed after it."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients within the block; the mode before is restored."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _aggregator(architecture: Architecture) -> AggregatorModule | None:
    if not architecture.aggregator:
        return None
    maker = cast("Aggregator", create("aggregator", architecture.aggregator))
    return maker.build(architecture.in_dim)


def _trunk(width: int, architecture: Architecture) -> tuple[nn.Module, int]:
    # A wide vector is redundant and is trained better with half of it hidden; of six colour numbers each counts.
    entry = architecture.dropout * min(1.0, width / REDUNDANT_WIDTH)
    if not architecture.hidden:
        return nn.Dropout(entry), width
    layers = [
        nn.Dropout(entry),
        nn.Linear(width, architecture.hidden),
        nn.GELU(),
        nn.Dropout(architecture.dropout),
    ]
    return nn.Sequential(*layers), architecture.hidden


def _head(width: int, outputs: int, name: str, seed: int) -> nn.Linear:
    head = nn.Linear(width, outputs)
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
    with torch.no_grad():
        head.weight.normal_(std=0.01, generator=generator)
        head.bias.zero_()
    return head
