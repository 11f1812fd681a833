"""The network: standardise, aggregate, what tasks share, one linear layer a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast
from zlib import crc32

import torch
from torch import nn

from histotl.core.registry import create
from histotl.learn.aggregators.base import Aggregated, Aggregator, AggregatorModule, Judge, Outputs, Supervised
from histotl.learn.sharing.base import Sharing, SharingModule, SharingShape


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that fixes the shapes of a network.

    Args:
        in_dim: Length of a feature vector.
        aggregator: Spec of the aggregator; empty at tile level.
        hidden: Width of the trunk, 0 for none.
        dropout: On the trunk's input (less where it is narrow) and output.
        outputs: (task name, outputs of its linear layer), in the order of the tasks.
        sharing: Spec of what tasks share.
    """

    in_dim: int
    aggregator: str
    hidden: int
    dropout: float
    outputs: Outputs
    sharing: str = "hard"


@dataclass(frozen=True, kw_only=True)
class Output:
    """Result for B bags with N tiles in all.

    Args:
        tasks: Task name -> float (B, o).
        pooled: What the aggregator made; None where bags were pooled before.
    """

    tasks: dict[str, torch.Tensor]
    pooled: Aggregated | None = None

    @property
    def weights(self) -> torch.Tensor | None:
        """Each tile's share in its bag, float (N,) or (N, k), or None."""
        return None if self.pooled is None else self.pooled.weights


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
            self.sharing = _sharing(width, architecture)
            out = self.sharing.out_dim
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
        """What tasks share, and their linear layers, on bag vectors (B, d) or (B, t, d)."""
        shared = self.sharing((bags - self.bag_mean) / self.bag_std)
        return {name: head(shared[:, i]) for i, (name, head) in enumerate(zip(self.names, self.heads, strict=True))}

    def bias(self, task: str) -> torch.Tensor:
        """(o,): what the task's linear layer adds."""
        return cast("nn.Linear", self.heads[self.names.index(task)]).bias

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Output:
        """Float32 (N, D) tiles of packed bags into outputs."""
        pooled = self.pool(x, offsets, coords)
        direct = dict(pooled.direct)
        answers = direct if direct.keys() >= set(self.names) else self.answer(pooled.bags) | direct
        return Output(tasks={name: answers[name] for name in self.names}, pooled=pooled)

    def auxiliary(self, output: Output, judge: Judge) -> torch.Tensor | None:
        """What the parts add to the training loss beside the losses of the tasks, a scalar; None for nothing."""
        terms = [self.sharing.penalty()]
        if isinstance(self.aggregator, Supervised) and output.pooled is not None:
            terms.append(self.aggregator.auxiliary(output.pooled, judge))
        found = [term for term in terms if term is not None]
        return torch.stack(found).sum() if found else None


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
    return maker.build(architecture.in_dim, architecture.outputs)


def _sharing(width: int, architecture: Architecture) -> SharingModule:
    maker = cast("Sharing", create("sharing", architecture.sharing))
    shape = SharingShape(
        width=width, hidden=architecture.hidden, dropout=architecture.dropout, n_tasks=len(architecture.outputs)
    )
    return maker.build(shape)


def _head(width: int, outputs: int, name: str, seed: int) -> nn.Linear:
    head = nn.Linear(width, outputs)
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
    with torch.no_grad():
        head.weight.normal_(std=0.01, generator=generator)
        head.bias.zero_()
    return head
