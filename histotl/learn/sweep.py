"""Folds and seeds at once: many networks are trained in one pass over the data.

Every network has bags of its own to learn from, and sees in every step those of them that the step holds. It becomes
what :func:`histotl.learn._trainer.train_one` would make of it with the same steps, up to rounding (dropout is drawn
otherwise). Features are read once for all, the first layers of attention are one matrix product, and a step of all
costs about as many calls as a step of one: what a GPU gains, which one small network cannot fill. A CPU gains where
reading is the larger part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.allocator import large_blocks_kept
from histotl.core.device import choose_device
from histotl.core.errors import TableError, UsageError
from histotl.core.progress import Report, silent
from histotl.core.registry import create
from histotl.learn._race import Fold, Race
from histotl.learn._stacked import Stack
from histotl.learn._trainer import Data
from histotl.learn.aggregators.abmil import Abmil
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.covariates import NO_COVARIATES, CovariateEncoder, fit_covariates
from histotl.learn.device_rows import on_device
from histotl.learn.fit import Labelled, architecture_of
from histotl.learn.labels import known_rows
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective, Targets, TaskFacts
from histotl.learn.prepare import pool_once, set_bag_scale, set_tile_scale, tile_scales
from histotl.learn.strata import strata_of
from histotl.learn.task import Task

Indices = npt.NDArray[np.int64]
Pooled = torch.Tensor | None

TOGETHER = frozenset({"binary", "multiclass", "ordinal", "regression"})
"""Kinds of tasks whose losses can be computed for several networks at once; others are computed one by one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One network of a sweep.

    Args:
        train: int64: bags that it learns from.
        val: int64: bags that choose its checkpoint. Bags in neither have no part in it.
        seed: Of its first weights.
        rate: Its peak learning rate.
    """

    train: Indices
    val: Indices
    seed: int = 0
    rate: float = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """What an entry became.

    Args:
        network: In evaluation mode, on the CPU; weights of the checkpoint of least validation loss. Tasks that answer
            by training rows keep none yet (:func:`histotl.learn.finishing.finished`).
        architecture: Its shapes.
        facts: What its training labels said of each task.
        loss: Its least validation loss.
        history: One entry a look at the validation bags.
        steps: Optimiser steps.
        tasks: What is predicted, with the options that its training labels fixed.
        covariates: What the network is told of a bag, as its training bags scale it.
    """

    network: Network
    architecture: Architecture
    facts: dict[str, TaskFacts]
    loss: float
    history: list[dict[str, object]]
    steps: int
    tasks: tuple[Task, ...]
    covariates: CovariateEncoder = NO_COVARIATES


def can_sweep(config: TrainConfig, aggregator: str = "") -> bool:
    """Whether networks of these settings can be trained together.

    They can with hard sharing and equal weights of tasks, by an aggregator without weights, gated attention, or none.
    Steps that hold some labelled cases of every task cannot be made for all of them at once.
    """
    if (config.sharing, config.balancing) != ("hard", "equal") or config.views or config.pretrained:
        return False
    if config.optimizer not in ("", "adamw") or config.ensure_tasks:
        return False
    if not aggregator:
        return True
    made = create("aggregator", aggregator)
    if isinstance(made, Abmil):
        # Only these may differ: other options make another network than the one that is stacked here.
        return made == Abmil(hidden=made.hidden, attention=made.attention, dropout=made.dropout)
    outputs = (("task", 1),)
    return Network(Architecture(in_dim=2, aggregator=aggregator, hidden=0, dropout=0.0, outputs=outputs)).pools_first


@large_blocks_kept()
def sweep(
    labelled: Labelled,
    entries: Sequence[Entry],
    *,
    tasks: Sequence[Task],
    config: TrainConfig,
    aggregator: str = "",
    report: Report = silent,
) -> list[Swept]:
    """Train all entries.

    The settings are those of :func:`histotl.learn.fit.fit`; ``members`` and ``learning_rates`` have no meaning here,
    ``seed`` is that of the steps and of dropout. A step holds more bags than ``batch_size`` says, so that an entry
    sees as many of its own. Data sets are balanced over the bags of all entries, and so for every entry that has the
    same share of each of them, as folds have.

    Args:
        labelled: All bags, with their labels.
        entries: The networks.
        tasks: What is predicted; classes known.
        config: Settings.
        aggregator: Spec; empty when every bag is one row.
        report: Told of every look at the validation bags.

    Returns:
        One result for each entry, in their order.

    Raises:
        UsageError: No entries, settings with which networks cannot be trained together, steps that cannot hold what
            they are to, or training bags of entries with other categories of a covariate.
        TableError: A task has no label among the training bags of an entry, or an entry has no labelled val bag.
    """
    if not entries or not can_sweep(config, aggregator):
        fact = f"aggregator {aggregator!r}, sharing {config.sharing!r}, balancing {config.balancing!r}"
        fact += f", ensure_tasks {config.ensure_tasks}" if config.ensure_tasks else ""
        what = f"{len(entries)} networks with {fact} cannot be trained together"
        raise UsageError(what, hint="train them one by one with fit, or take mean or abmil, hard and equal")
    device = choose_device(config.device)
    bags = labelled.bags.at(on_device(labelled.bags.source, labelled.bags.rows, device))
    order, folds = _folds(labelled.targets, entries, tasks, config, device)
    ordered = [entries[i] for i in order]
    encoders, known = _told(bags, folds, ordered, config, device)
    shapes = [
        architecture_of(bags.source.dim, fold.objective, config, aggregator, encoder.blocks)
        for fold, encoder in zip(folds, encoders, strict=True)
    ]
    networks = [
        Network(shapes[number], ordered[place].seed).to(device)
        for number, fold in enumerate(folds)
        for place in range(fold.where.start, fold.where.stop)
    ]
    pooled = _scale(networks, bags, folds, ordered)
    learnt, looked = (
        np.unique(np.concatenate([getattr(entry, part) for entry in entries])) for part in ("train", "val")
    )
    groups = None if labelled.groups is None else labelled.groups[learnt]
    race = Race(
        stack=Stack(networks, _dropout(aggregator)),
        folds=folds,
        rates=torch.tensor([entry.rate for entry in ordered], device=device),
        learnt=learnt,
        looked=looked,
        bags=bags,
        pooled=pooled,
        covariates=known,
        strata=strata_of(config, groups, {name: values[learnt] for name, values in labelled.targets.items()}, tasks),
    )
    share = len(learnt) / float(np.mean([len(entry.train) for entry in entries]))
    widened = _widened(config, race.data, share)
    race.data.check(widened)
    finish = race.run(widened, report)
    race.stack.load(networks, finish.weights)
    found = {
        order[place]: Swept(
            network=networks[place].cpu().eval(),
            architecture=shapes[number],
            facts=fold.objective.facts,
            loss=finish.losses[place],
            history=finish.histories[place],
            steps=race.data.steps(widened),
            tasks=fold.objective.tasks,
            covariates=encoders[number],
        )
        for number, fold in enumerate(folds)
        for place in range(fold.where.start, fold.where.stop)
    }
    return [found[i] for i in range(len(entries))]


def _folds(
    targets: Targets, entries: Sequence[Entry], tasks: Sequence[Task], config: TrainConfig, device: torch.device
) -> tuple[list[int], list[Fold]]:
    """The order in which entries of the same bags are neighbours, and these groups."""
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for number, entry in enumerate(entries):
        groups.setdefault((np.sort(entry.train).tobytes(), np.sort(entry.val).tobytes()), []).append(number)
    folds, start = [], 0
    for numbers in groups.values():
        first = entries[numbers[0]]
        learnt, looked = _only(targets, first.train), _only(targets, first.val)
        if not any(known_rows(values).any() for values in looked.values()):
            raise TableError("no val bag of an entry has a label", hint="label some, or make fewer folds")
        objective = Objective(tasks, learnt, class_balance=config.class_balance).to(device)
        if not objective.rowwise:
            fact = "a task whose loss is of all rows together, such as Cox's, needs networks trained one by one"
            raise UsageError(fact, hint="use fit, or survival(loss='discrete')")
        folds.append(
            Fold(
                where=slice(start, start + len(numbers)),
                objective=objective,
                train=objective.tensor(learnt).to(device),
                val=objective.tensor(looked).to(device),
                looked=np.unique(first.val),
                together=all(task.kind in TOGETHER and not (task.options or task.votes) for task in tasks),
            )
        )
        start += len(numbers)
    return [number for numbers in groups.values() for number in numbers], folds


def _only(targets: Targets, bags: Indices) -> dict[str, npt.NDArray[np.float64]]:
    """The labels of some bags, missing elsewhere."""
    found = {}
    for name, values in targets.items():
        found[name] = np.full_like(values, np.nan)
        found[name][bags] = values[bags]
    return found


def _told(
    bags: Bags, folds: Sequence[Fold], entries: Sequence[Entry], config: TrainConfig, device: torch.device
) -> tuple[list[CovariateEncoder], Pooled]:
    """What each fold is told, and the columns of all bags for each, float (F, B, c); None where it is nothing."""
    hides, encoders = config.covariate_dropout > 0, list[CovariateEncoder]()
    for fold in folds:
        train = np.unique(entries[fold.where.start].train)
        encoders.append(fit_covariates(bags.subset(train).covariates, hides=hides))
    shapes = {encoder.blocks for encoder in encoders}
    if len(shapes) > 1:
        fact = "the training bags of some entries have categories of a covariate that those of others lack"
        raise UsageError(fact, hint="train these networks one by one with fit, or join rare categories with least=")
    columns = [each for each in (encoder.encode(bags.covariates) for encoder in encoders) if each is not None]
    return encoders, torch.from_numpy(np.stack(columns)).to(device) if columns else None


def _scale(networks: Sequence[Network], bags: Bags, folds: Sequence[Fold], entries: Sequence[Entry]) -> Pooled:
    """Set the input scale of every network by its own training bags; give bag vectors where they are pooled once."""
    members = np.zeros((len(folds), len(bags)), dtype=bool)
    for number, fold in enumerate(folds):
        members[number, entries[fold.where.start].train] = True
    means, stds = tile_scales(bags, members)
    pooled = []
    for number, fold in enumerate(folds):
        own = networks[fold.where]
        for network in own:
            set_tile_scale(network, means[number], stds[number])
        if own[0].pools_first:
            pooled.append(pool_once(own[0], bags))
            if own[0].aggregator is not None:
                chosen = torch.from_numpy(np.flatnonzero(members[number])).to(pooled[-1].device)
                for network in own:
                    set_bag_scale(network, pooled[-1][chosen])
    return torch.stack(pooled) if pooled else None


def _dropout(aggregator: str) -> float:
    made = create("aggregator", aggregator) if aggregator else None
    return made.dropout if isinstance(made, Abmil) else 0.0


def _widened(config: TrainConfig, data: Data, share: float) -> TrainConfig:
    """Steps so much larger that those of an entry's own bags in them are as many as in training alone."""
    size = min(len(data.targets), round(share * data.batch_size(config)))
    return replace(config, batch_size=size, tiles_per_step=round(share * config.tiles_per_step))
