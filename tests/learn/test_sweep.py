"""Networks that are trained together become what they become alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from histotl.core.errors import TableError, UsageError
from histotl.core.progress import Step
from histotl.learn._trainer import Data, train_one
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.covariate_specs import Covariate
from histotl.learn.covariate_values import CovariateValues
from histotl.learn.covariates import fit_covariates
from histotl.learn.fit import Labelled
from histotl.learn.network import Architecture, Network, evaluating
from histotl.learn.objective import Objective
from histotl.learn.prepare import pool_once, set_bag_scale, set_tile_scale, tile_scales
from histotl.learn.rows import ArrayRows
from histotl.learn.sweep import Entry, Swept, can_sweep, sweep
from histotl.learn.task import Task

TASKS = [
    Task(name="yes", kind="binary", classes=("n", "y")),
    Task(name="type", kind="multiclass", classes=("a", "b", "c")),
    Task(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Task(name="size", kind="regression"),
]
ABMIL = "abmil(hidden=12, attention=6, dropout=0.0)"


def cohort(sizes: list[int], seed: int = 0, *, told: bool = False) -> Labelled:
    rng = np.random.default_rng(seed)
    n = len(sizes)
    y = np.arange(n) % 2
    x = rng.normal(size=(sum(sizes), 8)) * np.arange(1, 9) + 5
    x[:, 0] += np.repeat(y * 2.0, sizes)
    grade = np.where(np.arange(n) % 4 == 0, np.nan, np.arange(n) % 3)
    targets = {"yes": y.astype(float), "type": np.arange(n) % 3.0, "grade": grade, "size": rng.normal(size=n) + y}
    groups = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    bags = Bags.of(ArrayRows(x.astype(np.float32)), groups)
    return Labelled(bags=replace(bags, covariates=known(n, rng) if told else None), targets=targets)


def known(n: int, rng: np.random.Generator) -> CovariateValues:
    """A number with gaps and a category, of which every fold has all."""
    ages = np.where(np.arange(n) % 5 == 3, np.nan, rng.normal(60, 10, n))
    table = np.stack([ages, np.arange(n) % 3.0], axis=1)
    covariates = Covariate(name="age"), Covariate(name="site", kind="category", fusion="film")
    return CovariateValues(covariates=covariates, table=table, words=((), ("A", "B", "C")))


def folds(n: int, seeds: int = 2) -> list[Entry]:
    part = np.arange(n) % 4
    return [
        Entry(
            train=np.flatnonzero((part != fold) & (part != (fold + 1) % 4)),
            val=np.flatnonzero(part == fold),
            seed=seed,
            rate=0.003 * (1 + seed),
        )
        # Interleaved, so that results must be put back into the order of the entries.
        for seed in range(seeds)
        for fold in range(3)
    ]


def alone(
    labelled: Labelled,
    entry: Entry,
    entries: list[Entry],
    config: TrainConfig,
    shapes: Architecture,
    tasks: Sequence[Task] = TASKS,
) -> Swept:
    """One entry by the loop of ordinary training, on the same steps: labels of others' bags are missing."""
    bags = labelled.bags

    def masked(chosen: np.ndarray) -> dict[str, np.ndarray]:
        mine = np.isin(np.arange(len(bags)), chosen)
        return {name: np.where(mine, values, np.nan) for name, values in labelled.targets.items()}

    learnt, looked = masked(entry.train), masked(entry.val)
    objective = Objective(tasks, learnt)
    network = Network(shapes, entry.seed)
    mean, std = tile_scales(bags.subset(entry.train), np.ones((1, len(entry.train)), dtype=bool))
    set_tile_scale(network, mean[0], std[0])
    union = np.unique(np.concatenate([one.train for one in entries]))
    every = np.unique(np.concatenate([one.val for one in entries]))
    targets, wanted = objective.tensor(learnt)[union], objective.tensor(looked)[every]
    encoder = fit_covariates(bags.subset(entry.train).covariates)
    columns = encoder.encode(bags.covariates)
    about = [None if columns is None else torch.from_numpy(columns)[part] for part in (union, every)]
    if network.pools_first:
        pooled = pool_once(network, bags)
        if shapes.aggregator:
            set_bag_scale(network, pooled[entry.train])
        data, check = (
            Data(targets=t, pooled=pooled[part], covariates=c)
            for t, part, c in zip((targets, wanted), (union, every), about, strict=True)
        )
    else:
        data = Data(targets=targets, bags=bags.subset(union), covariates=about[0])
        thinned = bags.subset(every).thinned(config.max_tiles, config.seed)
        check = Data(targets=wanted, bags=thinned, covariates=about[1])
    share = len(union) / np.mean([len(one.train) for one in entries])
    config = replace(config, batch_size=round(share * config.batch_size))
    loss, history = train_one(network, objective, data, check, config, rate=entry.rate, seed=config.seed)
    return Swept(
        network=network.eval(),
        architecture=shapes,
        facts=objective.facts,
        loss=loss,
        history=history,
        steps=data.steps(config),
        tasks=objective.tasks,
        covariates=encoder,
    )


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("aggregator", ["", "mean", ABMIL])
def test_together_is_alone(aggregator: str, quick: TrainConfig, *, told: bool) -> None:
    rng = np.random.default_rng(1)
    labelled = cohort([1] * 40 if not aggregator else rng.integers(1, 30, 40).tolist(), told=told)
    entries = folds(40)
    # What rounding does grows with every step, and sooner where covariates multiply vectors.
    steps = 40 if told else 60
    config = replace(quick, batch_size=6, max_tiles=10, min_steps=steps, max_steps=steps, ema=0.9, seed=3)
    together = sweep(labelled, entries, tasks=TASKS, config=config, aggregator=aggregator)
    for entry, found in zip(entries, together, strict=True):
        wanted = alone(labelled, entry, entries, config, found.architecture)
        assert found.facts == wanted.facts
        assert found.covariates == wanted.covariates
        assert bool(found.covariates.parts) == told
        assert found.loss == pytest.approx(wanted.loss, rel=1e-4)
        assert [look["step"] for look in found.history] == [look["step"] for look in wanted.history]
        np.testing.assert_allclose(
            [[look["train"], look["val"]] for look in found.history],
            [[look["train"], look["val"]] for look in wanted.history],
            rtol=1e-3,
        )
        state = wanted.network.state_dict()
        for name, value in found.network.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=2e-4)
        packed = labelled.bags.gather(np.arange(40))
        columns = found.covariates.encode(packed.covariates)
        about = None if columns is None else torch.from_numpy(columns)
        with evaluating(found.network, wanted.network):
            one, other = (
                network(packed.x, packed.offsets, None, about).tasks for network in (found.network, wanted.network)
            )
        for task in TASKS:
            torch.testing.assert_close(one[task.name], other[task.name], rtol=1e-3, atol=1e-3)
    assert len({found.loss for found in together}) == len(entries)


def test_rows_that_learn_from_one_another_meet_those_of_their_own_entry(quick: TrainConfig) -> None:
    labelled, entries = cohort([1] * 40), folds(40)
    tasks = [Task(name="type", kind="embedding", classes=("a", "b", "c"), options={"width": 4})]
    config = replace(quick, batch_size=8)
    for entry, found in zip(entries, sweep(labelled, entries, tasks=tasks, config=config), strict=True):
        wanted = alone(labelled, entry, entries, config, found.architecture, tasks)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-3)
        state = wanted.network.state_dict()
        for name, value in found.network.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-2, atol=2e-3)


def test_bags_of_neither_part_change_nothing(quick: TrainConfig) -> None:
    """What stands for test in every fold: other labels and other features of these bags give the same networks."""
    labelled = cohort([3] * 24)
    entries = [Entry(train=np.arange(12), val=np.arange(12, 18), seed=seed) for seed in range(2)]
    config = replace(quick, dropout=0.3)
    found = sweep(labelled, entries, tasks=TASKS, config=config, aggregator=ABMIL)
    x = labelled.bags.source.read(np.arange(72))
    x[54:] = 1e6
    targets = {name: values.copy() for name, values in labelled.targets.items()}
    for values in targets.values():
        values[18:] = 1
    other = Labelled(bags=labelled.bags.at(ArrayRows(x)), targets=targets)
    again = sweep(other, entries, tasks=TASKS, config=config, aggregator=ABMIL)
    for one, two in zip(found, again, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.network.state_dict().values(), two.network.state_dict().values(), strict=True)
        )


def test_dropout_differs_between_networks_and_returns_with_the_seed(quick: TrainConfig) -> None:
    labelled = cohort([4] * 16)
    entries = [Entry(train=np.arange(10), val=np.arange(10, 16), seed=5)] * 2
    config = replace(quick, dropout=0.5)
    for aggregator in ("mean", "abmil(hidden=12, attention=6, dropout=0.5)"):
        found = sweep(labelled, entries, tasks=TASKS, config=config, aggregator=aggregator)
        again = sweep(labelled, entries, tasks=TASKS, config=config, aggregator=aggregator)
        assert found[0].loss != found[1].loss
        assert [one.history for one in found] == [one.history for one in again]


def test_patience_ends_each_network_by_itself(quick: TrainConfig) -> None:
    labelled = cohort([2] * 30)
    entries = folds(30, seeds=1)
    config = replace(quick, min_steps=300, max_steps=300, learning_rates=(0.05,))
    whole = sweep(labelled, entries, tasks=TASKS, config=config, aggregator="mean")
    told: list[Step] = []
    stopped = sweep(
        labelled, entries, tasks=TASKS, config=replace(config, patience=2), aggregator="mean", report=told.append
    )
    assert len(told) == max(len(one.history) for one in stopped)
    for short, full in zip(stopped, whole, strict=True):
        assert short.history == full.history[: len(short.history)]
    assert min(len(one.history) for one in stopped) < 20


def test_what_cannot_be_trained_together_is_refused(labelled: Callable[..., Labelled], quick: TrainConfig) -> None:
    assert can_sweep(quick)
    assert can_sweep(quick, "mean")
    assert can_sweep(quick, "abmil(hidden=7)")
    assert not can_sweep(replace(quick, views=True), "mean")
    data = cohort([1] * 8)
    entry = Entry(train=np.arange(4), val=np.arange(4, 8))
    with pytest.raises(UsageError, match="0 networks") as caught:
        sweep(data, [], tasks=TASKS, config=quick)
    assert caught.value.hint
    uneven = cohort([1] * 8, told=True)
    some = [Entry(train=np.arange(2), val=np.arange(4, 8)), Entry(train=np.arange(4), val=np.arange(4, 8))]
    with pytest.raises(UsageError, match="those of others lack") as caught:
        sweep(uneven, some, tasks=TASKS[3:], config=quick)
    assert "least=" in caught.value.hint
    unlabelled = Labelled(bags=data.bags, targets={name: np.full(8, np.nan) for name in data.targets})
    for name, values in data.targets.items():
        unlabelled.targets[name][:4] = values[:4]  # type: ignore[index]
    with pytest.raises(TableError, match="no val bag"):
        sweep(unlabelled, [entry], tasks=TASKS, config=quick)


def test_hidden_covariates_differ_between_networks_and_return_with_the_seed(quick: TrainConfig) -> None:
    labelled = cohort([4] * 16, told=True)
    entries = [Entry(train=np.arange(10), val=np.arange(10, 16), seed=5)] * 2
    config = replace(quick, covariate_dropout=0.4)
    found, again = (sweep(labelled, entries, tasks=TASKS, config=config, aggregator="mean") for _ in range(2))
    assert found[0].loss != found[1].loss
    assert [one.history for one in found] == [one.history for one in again]


def test_steps_without_any_label_teach_nothing(quick: TrainConfig) -> None:
    labelled = cohort([3] * 16)
    for values in labelled.targets.values():
        values[8:12] = np.nan  # type: ignore[index]
    config = replace(quick, batch_size=1, min_steps=40, max_steps=40)
    entries = [Entry(train=np.arange(12), val=np.arange(12, 16)), Entry(train=np.arange(4, 12), val=np.arange(12, 16))]
    for aggregator in ("mean", ABMIL):
        found = sweep(labelled, entries, tasks=TASKS, config=config, aggregator=aggregator)
        assert all(np.isfinite(one.loss) for one in found)
