"""Training on bags in memory or on disk: AdamW, warm-up and cosine, averaged weights, best validation checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.allocator import large_blocks_kept
from histotl.core.device import choose_device
from histotl.core.errors import TableError
from histotl.core.progress import Report, Step, silent
from histotl.learn._trainer import NO_HOOKS, Data, Hooks, train_one
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.covariates import NO_COVARIATES, Blocks, CovariateEncoder, fit_covariates
from histotl.learn.device_rows import on_device
from histotl.learn.labels import known_rows
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective, Targets, TaskFacts
from histotl.learn.prepare import pool_once, set_bag_scale, set_tile_scale, tile_scales
from histotl.learn.pretrained import Pretrained
from histotl.learn.resume import Done, Progress
from histotl.learn.strata import Indices, strata_of
from histotl.learn.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Bags with their labels.

    Args:
        bags: B bags.
        targets: Task name -> (B,) class indices or numbers, or several columns (B, c), NaN where missing.
        owner: int64 (B,): number of the case that each bag is of; None where each is a case.
        groups: int64 (B,): number of the data set of each bag; None where it is not known.
    """

    bags: Bags
    targets: Targets
    owner: npt.NDArray[np.int64] | None = None
    groups: Indices | None = None

    def known(self) -> Labelled:
        """Without the bags that have no label at all: they must not shape batches or input statistics."""
        some = np.zeros(len(self.bags), dtype=bool)
        for target in self.targets.values():
            some |= known_rows(target)
        if some.all():
            return self
        keep = np.flatnonzero(some).astype(np.int64)
        targets = {n: t[keep] for n, t in self.targets.items()}
        owner, groups = (None if each is None else each[keep] for each in (self.owner, self.groups))
        return Labelled(bags=self.bags.subset(keep), targets=targets, owner=owner, groups=groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Result of :func:`fit`.

    Args:
        members: Networks in evaluation mode, on the CPU.
        architecture: Their common shapes.
        facts: What the training labels said of each task.
        learning_rate: The one kept.
        tried: Learning rate -> validation loss of the first member.
        history: One entry a checkpoint: member, learning rate, step, training and validation losses.
        steps: Optimiser steps of each member.
        tasks: What is predicted, with the options that training labels fixed.
        covariates: What the networks are told of a case, as the training rows scale it.
    """

    members: tuple[Network, ...]
    architecture: Architecture
    facts: dict[str, TaskFacts]
    learning_rate: float
    tried: dict[float, float]
    history: list[dict[str, object]] = field(default_factory=list)
    steps: int = 0
    tasks: tuple[Task, ...] = ()
    covariates: CovariateEncoder = NO_COVARIATES


@large_blocks_kept()
def fit(
    train: Labelled,
    val: Labelled,
    *,
    tasks: Sequence[Task],
    config: TrainConfig,
    aggregator: str = "",
    start: Pretrained | None = None,
    report: Report = silent,
    hooks: Hooks = NO_HOOKS,
    progress: Progress | None = None,
) -> Fitted:
    """Train the members.

    Args:
        train: What is learnt from. Bags without any label are left out. What is known of its bags, networks are told.
        val: Chooses the checkpoint and the learning rate; nothing of it is learnt from.
        tasks: What is predicted; classes known.
        config: Settings.
        aggregator: Spec of the aggregator; empty when every bag is one row.
        start: The same aggregator, trained before; it keeps the tile statistics that it was trained with.
        report: Called at every checkpoint.
        hooks: A weighting of the tasks' gradients, as a function, and whoever watches the steps.
        progress: Keeps every network that is finished, and has those of a start before.

    Raises:
        TableError: A task has no labelled training row, or there is no labelled validation row; or no training row has
            a value of a covariate.
        UsageError: The aggregator to start from was trained for other tasks; covariates cannot reach its answers; or
            steps cannot hold what they are to.
    """
    train, val = train.known(), val.known()
    if not len(val.bags):
        raise TableError("no row of val has a label", hint="label some, or let --fractions make a split")
    device = choose_device(config.device)
    train, val = _placed(train, val, device)
    objective = Objective(tasks, train.targets, class_balance=config.class_balance)
    encoder = fit_covariates(train.bags.covariates, hides=config.covariate_dropout > 0)
    architecture = architecture_of(train.bags.source.dim, objective, config, aggregator, encoder.blocks)
    objective.to(device)
    first = Network(architecture, config.seed).to(device)
    means, stds = tile_scales(train.bags, np.ones((1, len(train.bags)), dtype=bool))
    set_tile_scale(first, means[0], stds[0])
    if start is not None:
        start.put(first)
    if not first.pools_first:
        # The looks at val during training need no more tiles than training itself; prediction uses all.
        val = replace(val, bags=val.bags.thinned(config.max_tiles, config.seed))
    data, check = (_prepare(first, part, objective, encoder, device) for part in (train, val))
    if first.pools_first and aggregator:
        set_bag_scale(first, data.vectors())
    if config.views:
        # Which view a tile shows changes at every step, so nothing can be pooled once.
        data = replace(data, pooled=None, bags=train.bags, mixed=True)
    data = replace(data, strata=strata_of(config, train.groups, train.targets, tasks))
    data.check(config)
    runs = _Runs(first, architecture, objective, data, check, config, report, hooks, start, progress)
    tried = {rate: runs.run(0, rate) for rate in config.learning_rates}
    best = min(tried, key=lambda rate: tried[rate])
    for member in range(1, config.members):
        runs.run(member, best)
    members = tuple(runs.networks[member, best].cpu().eval() for member in range(config.members))
    return Fitted(
        members=members,
        architecture=architecture,
        facts=objective.facts,
        learning_rate=best,
        tried=tried,
        history=runs.history,
        steps=runs.steps,
        tasks=objective.tasks,
        covariates=encoder,
    )


def _placed(train: Labelled, val: Labelled, device: torch.device) -> tuple[Labelled, Labelled]:
    """The same, with features on the device that computes, where it is a GPU with room for them."""
    bags = train.bags, val.bags
    sources = {id(some.source): some.source for some in bags}
    places = {
        key: on_device(source, np.concatenate([some.rows for some in bags if some.source is source]), device)
        for key, source in sources.items()
    }
    first, second = (replace(part, bags=part.bags.at(places[id(part.bags.source)])) for part in (train, val))
    return first, second


def architecture_of(
    in_dim: int, objective: Objective, config: TrainConfig, aggregator: str, covariates: Blocks = ()
) -> Architecture:
    """Shapes of the networks that settings and tasks ask for.

    Args:
        in_dim: Length of a feature vector.
        objective: The tasks.
        config: Settings.
        aggregator: Spec of the aggregator; empty when every bag is one row.
        covariates: What networks are told of a case.
    """
    return Architecture(
        in_dim=in_dim,
        aggregator=aggregator,
        hidden=config.hidden,
        dropout=config.dropout,
        outputs=objective.n_outputs(),
        sharing=config.sharing,
        heads=objective.layers(),
        adversaries=objective.adversaries(),
        covariates=covariates,
        covariate_dropout=config.covariate_dropout if covariates else 0.0,
    )


class _Runs:
    """Trains members one after the other and keeps what they became."""

    def __init__(
        self,
        first: Network,
        architecture: Architecture,
        objective: Objective,
        data: Data,
        check: Data,
        config: TrainConfig,
        report: Report,
        hooks: Hooks,
        start: Pretrained | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._scale = {name: copy.deepcopy(value) for name, value in first.named_buffers(recurse=False)}
        self._architecture, self._objective, self._config = architecture, objective, config
        self._data, self._check, self._report = data, check, report
        self._hooks, self._start, self._progress = hooks, start, progress
        self.networks: dict[tuple[int, float], Network] = {}
        self.history: list[dict[str, object]] = []
        self._total = config.members + len(config.learning_rates) - 1
        self.steps = data.steps(config)

    def run(self, member: int, rate: float) -> float:
        """Train one member at one learning rate; returns its best validation loss."""
        seed = self._config.seed * 1000 + member
        network = Network(self._architecture, seed)
        for name, value in self._scale.items():
            network.get_buffer(name).copy_(value)
        if self._start is not None:
            self._start.put(network)
        network.to(self._data.targets.device)
        done = None if self._progress is None else self._progress.load(member, rate)
        if done is None:
            self._objective.begin()
            parts = (network, self._objective, self._data, self._check, self._config)
            loss, history = train_one(*parts, rate=rate, seed=seed, hooks=self._hooks)
            if self._progress is not None:
                self._progress.save(member, rate, Done(state=network.state_dict(), loss=loss, history=history))
        else:
            network.load_state_dict(done.state)
            loss, history = done.loss, done.history
        self.networks[member, rate] = network
        self.history += [{"member": member, "learning_rate": rate, **entry} for entry in history]
        text = f"member {member + 1}, learning rate {rate:g}: validation loss {loss:.4f}"
        text += "" if done is None else ", of the start before"
        self._report(Step(stage="train", done=len(self.networks), total=self._total, message=text))
        log.info(text)
        return loss


def _prepare(
    network: Network, labelled: Labelled, objective: Objective, encoder: CovariateEncoder, device: torch.device
) -> Data:
    """Pool once where nothing that is trained takes part in it; else keep the bags."""
    targets, columns = objective.tensor(labelled.targets).to(device), encoder.encode(labelled.bags.covariates)
    known = None if columns is None else torch.from_numpy(columns).to(device)
    if not network.pools_first:
        return Data(targets=targets, bags=labelled.bags, covariates=known)
    return Data(targets=targets, pooled=pool_once(network, labelled.bags), covariates=known)
