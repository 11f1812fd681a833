"""The network: standardise, aggregate, what tasks share, one linear layer a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.learn.aggregators.base import Aggregated, Aggregator, AggregatorModule, Judge, Outputs, Supervised
from histotl.learn.covariates import Blocks
from histotl.learn.fusion import Fusion
from histotl.learn.heads.base import Layered, Recalling
from histotl.learn.recall import Recall
from histotl.learn.reversal import reverse_gradient
from histotl.learn.seeds import own_seed, seeded
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
        heads: (task name, spec of its head) of the tasks whose head builds its own layer.
        dropped: Tasks that helped to learn and have no layer any more.
        adversaries: (task name, strength) of tasks whose gradient is reversed before what is shared.
        recalls: (task name, spec of its head) of tasks that are answered by training rows which the network keeps.
        covariates: What the network is told beside the tiles, see :class:`histotl.learn.fusion.Fusion`.
        covariate_dropout: Chance that a covariate of a case is hidden in a training step.
    """

    in_dim: int
    aggregator: str
    hidden: int
    dropout: float
    outputs: Outputs
    sharing: str = "hard"
    heads: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    adversaries: tuple[tuple[str, float], ...] = ()
    recalls: tuple[tuple[str, str], ...] = ()
    covariates: Blocks = ()
    covariate_dropout: float = 0.0


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
        """Each tile's share in its bag, float (N,), or (N, t) where tasks differ in it, or None."""
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
            self.fusion = _fusion(width, architecture, self.aggregator)
            self.sharing = _sharing(width if self.fusion is None else self.fusion.out_dim, architecture, seed)
            out = self.sharing.out_dim
            specs, dropped = dict(architecture.heads), architecture.dropped
            self.heads = nn.ModuleList(
                [
                    nn.Identity() if name in dropped else _head(out, n, name, seed, specs.get(name, ""))
                    for name, n in architecture.outputs
                ]
            )
            recalls = dict(architecture.recalls)
            self.recalls = nn.ModuleList([_recall(n, recalls.get(name, "")) for name, n in architecture.outputs])
        self._adversaries = dict(architecture.adversaries)
        self.answered = tuple(name for name in self.names if name not in architecture.dropped)
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
        x = (x - self.mean).div_(self.std)
        if self.aggregator is None:
            return Aggregated(bags=x)
        return self.aggregator(x, offsets, coords)

    def answer(self, bags: torch.Tensor, covariates: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """What tasks share, and their linear layers, on bag vectors (B, d) or (B, t, d), and what is known (B, c)."""
        return self.read(self.common(bags, covariates))

    def common(self, bags: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        """What all tasks read, see :class:`histotl.learn.sharing.base.SharingModule`."""
        scaled = (bags - self.bag_mean) / self.bag_std
        if self.fusion is not None:
            if covariates is None:
                raise ValueError("this network is told covariates, and there are none")
            scaled = self.fusion(scaled, covariates)
        return self.sharing.common(scaled)

    def read(self, common: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each task's part and layer on :meth:`common`; tasks that were dropped give nothing."""
        own = dict(zip(self.names, self.sharing.own(common), strict=True))
        layers = dict(zip(self.names, self.heads, strict=True))
        for name, strength in self._adversaries.items():
            own[name] = reverse_gradient(own[name], strength)
        return {name: self._recalled(name, layers[name](own[name])) for name in self.answered}

    def recall(self, task: str) -> Recall | None:
        """The training rows that answer for a task; None where the outputs of its layer are the answer."""
        found = self.recalls[self.names.index(task)]
        return found if isinstance(found, Recall) else None

    def _recalled(self, task: str, outputs: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.recalls[self.names.index(task)](outputs))

    def bias(self, task: str) -> torch.Tensor:
        """(o,): what the task's linear layer adds."""
        return cast("nn.Linear", self.heads[self.names.index(task)]).bias

    def forward(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        coords: torch.Tensor | None = None,
        covariates: torch.Tensor | None = None,
    ) -> Output:
        """Float32 (N, D) tiles of packed bags, with what is known of the bags (B, c), into outputs."""
        return self.respond(self.pool(x, offsets, coords), covariates=covariates)

    def respond(
        self, pooled: Aggregated, common: torch.Tensor | None = None, covariates: torch.Tensor | None = None
    ) -> Output:
        """Outputs from what :meth:`pool` made; ``common``, where given, takes the place of :meth:`common` of it."""
        direct = {name: self._recalled(name, answer) for name, answer in pooled.direct.items()}
        if direct.keys() & self._adversaries.keys():
            cure = "use another aggregator, or drop adversary="
            raise UsageError("an aggregator that answers by itself has no shared vector to turn against", hint=cure)
        if direct.keys() >= set(self.answered):
            answers = direct
        else:
            answers = (self.answer(pooled.bags, covariates) if common is None else self.read(common)) | direct
        return Output(tasks={name: answers[name] for name in self.answered}, pooled=pooled)

    def auxiliary(self, output: Output, judge: Judge) -> torch.Tensor | None:
        """What the parts add to the training loss beside the losses of the tasks, a scalar; None for nothing."""
        terms = [self.sharing.penalty()]
        if isinstance(self.aggregator, Supervised) and output.pooled is not None:
            terms.append(self.aggregator.auxiliary(output.pooled, judge))
        # A step without labels that an aggregator looks at gives a plain 0, which has no gradient.
        found = [term for term in terms if term is not None and term.requires_grad]
        return torch.stack(found).sum() if found else None


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


def _fusion(width: int, architecture: Architecture, aggregator: AggregatorModule | None) -> Fusion | None:
    """Where covariates meet the vectors of bags; None where there are none.

    Raises:
        UsageError: The aggregator answers by itself, past what they would reach.
    """
    if not architecture.covariates:
        return None
    if aggregator is not None:
        with evaluating(cast("nn.Module", aggregator)):
            tile, place = torch.zeros(1, architecture.in_dim), torch.zeros(1, 2, dtype=torch.int64)
            direct = aggregator(tile, torch.tensor([0, 1]), place).direct
        if direct:
            fact = f"the aggregator {architecture.aggregator!r} answers by itself, so that covariates cannot reach it"
            raise UsageError(fact, hint="use another, such as --aggregator abmil, or drop --covariate")
    return Fusion(width, architecture.covariates, architecture.covariate_dropout)


def _sharing(width: int, architecture: Architecture, seed: int) -> SharingModule:
    maker = cast("Sharing", create("sharing", architecture.sharing))
    names = tuple(name for name, _ in architecture.outputs)
    shape = SharingShape(width=width, hidden=architecture.hidden, dropout=architecture.dropout, names=names, seed=seed)
    return maker.build(shape)


def _recall(outputs: int, spec: str) -> nn.Module:
    """Empty room for training rows, or nothing."""
    return cast("Recalling", create("head", spec)).recall(outputs) if spec else nn.Identity()


def _head(width: int, outputs: int, name: str, seed: int, spec: str) -> nn.Module:
    """The layer of a task, linear unless its head builds another; matrices start small, the rest as it was made."""
    head = create("head", spec) if spec else None
    layer = head.layer(width, outputs) if isinstance(head, Layered) else nn.Linear(width, outputs)
    generator = torch.Generator().manual_seed(own_seed(seed, name))
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.01, generator=generator)
            else:
                parameter.zero_()
    return layer
