"""Steps hold equally many cases of every data set, some of every task, and leave no case out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from histotl.core.errors import UsageError
from histotl.learn._trainer import Data, Hooks
from histotl.learn.batch import Batch
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.strata import Strata, strata_of, stratified
from histotl.learn.sweep import Entry, can_sweep, sweep
from histotl.learn.task import Task

YES = Task(name="yes", kind="binary", classes=("n", "y"))
SIZE = Task(name="size", kind="regression")
BALANCED = TrainConfig(sampling="dataset_balanced", cohort_column="cohort", device="cpu")


def strata(sizes: tuple[int, ...], labelled: np.ndarray | None = None, least: int = 0) -> Strata:
    datasets = np.repeat(np.arange(len(sizes)), sizes)
    if labelled is None:
        labelled = np.ones((len(datasets), 1), dtype=bool)
    names = tuple(f"task_{i}" for i in range(labelled.shape[1]))
    return Strata(groups=datasets, what="data sets", tasks=names, labelled=labelled, least=least)


def steps(made: Strata, size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    return list(islice(stratified(made, size, np.random.default_rng(seed)), count))


@pytest.mark.parametrize("size", [3, 16, 17, 128])
def test_every_step_draws_equally_from_every_data_set(size: int) -> None:
    made = strata((400, 40, 7))
    found = np.array([np.bincount(made.groups[step], minlength=3) for step in steps(made, size, 300)])
    assert (found.sum(axis=1) == size).all()
    # As equal as whole numbers can be in each step, and exactly equal where they are made up for.
    assert found.min() >= size // 3
    assert found.max() <= -(-size // 3)
    assert len(set(found.sum(axis=0).tolist())) == 1


def test_no_case_starves_and_none_of_a_data_set_comes_more_often_than_another() -> None:
    made = strata((400, 40, 7))
    counts = np.bincount(np.concatenate(steps(made, 16, 1200)), minlength=447)
    for number in range(3):
        own = counts[made.groups == number]
        # 6400 draws in passes: every case as often as every other, but for the pass that is not over.
        assert own.max() - own.min() <= 1
        assert own.sum() == 6400


def test_a_case_comes_twice_in_a_step_only_where_there_are_too_few() -> None:
    for step in steps(strata((50, 9, 5)), 15, 200):
        assert len(set(step.tolist())) == 15
    few = strata((50, 3))
    for step in steps(few, 16, 100):
        counts = np.bincount(step, minlength=53)
        assert counts[:50].max() == 1
        # Eight places for three cases: two whole passes, and parts of those before and after.
        assert counts[50:].sum() == 8
        assert counts[50:].min() >= 2


def test_order_within_a_data_set_is_chance_and_the_seed_fixes_it() -> None:
    made = strata((30, 6))
    one, same, other = ([step.tolist() for step in steps(made, 6, 40, seed)] for seed in (1, 1, 2))
    assert one == same != other
    firsts = [int(step[0]) for seed in range(3000) for step in steps(made, 6, 1, seed)]
    assert chisquare(np.bincount(firsts, minlength=36)[:30]).pvalue > 1e-3


def test_a_task_with_two_per_cent_of_the_labels_is_in_every_step() -> None:
    rng = np.random.default_rng(0)
    labelled = np.stack([np.ones(1000, dtype=bool), np.arange(1000) < 20], axis=1)[rng.permutation(1000)]
    made = strata((1000,), labelled, least=2)
    found = steps(made, 16, 1000)
    held = np.array([labelled[step].sum(axis=0) for step in found])
    assert held[:, 1].min() >= 2
    assert (held[:, 0] == 16).all()
    assert all(len(set(step.tolist())) == 16 for step in found)
    counts = np.bincount(np.concatenate(found), minlength=1000)
    # Two places of sixteen are the rare task's; the others go round among all cases.
    assert counts[~labelled[:, 1]].min() >= 13
    rare = counts[labelled[:, 1]]
    assert rare.min() >= 100
    assert rare.max() - rare.min() <= 20
    # Plain sampling leaves the task out of most steps.
    plain = steps(replace(made, least=0), 16, 1000)
    assert np.mean([labelled[step][:, 1].any() for step in plain]) < 0.5


def test_both_laws_hold_together() -> None:
    """Three data sets, each with a task of its own that few of its cases are labelled for, and one task of all."""
    sizes = (300, 60, 12)
    datasets = np.repeat(np.arange(3), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    labelled = np.stack([*((datasets == k) & (place < 4) for k in range(3)), place >= 0], axis=1)
    made = strata(sizes, labelled, least=2)
    made.check(18)
    for step in steps(made, 18, 500):
        assert np.bincount(datasets[step], minlength=3).tolist() == [6, 6, 6]
        assert labelled[step].sum(axis=0).min() >= 2
    seen = np.bincount(np.concatenate(steps(made, 18, 500)), minlength=372)
    assert seen.min() >= 500 * 4 // 300


def test_what_a_step_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="a step of 2 cases cannot hold one of each of 3 data sets") as caught:
        strata((4, 4, 4)).check(2)
    assert caught.value.hint == "--batch-size 3 or more"
    labelled = np.ones((12, 2), dtype=bool)
    made = strata((8, 4), labelled, least=3)
    with pytest.raises(UsageError, match="may be 6 of one data set, a step of 10 has 5 places") as caught:
        made.check(10)
    assert caught.value.hint == "--batch-size 12 or more"
    made.check(12)
    labelled[2:, 1] = False
    with pytest.raises(
        UsageError, match="'task_1' has 2 labelled training cases, and every step is to hold 3"
    ) as caught:
        strata((12,), labelled, least=3).check(12)
    assert caught.value.hint == "--ensure-tasks 2, or label more"


def test_settings_that_contradict_each_other_are_refused() -> None:
    for wrong, told in (
        ({"sampling": "dataset_balanced"}, "nothing says which data set"),
        ({"cohort_column": "cohort"}, "takes no notice of it"),
        ({"sampling": "class_balanced"}, "sampling is 'class_balanced'"),
        ({"ensure_tasks": 1, "tiles_per_step": 100}, "--ensure-tasks 1 by cases"),
        ({"sampling": "dataset_balanced", "cohort_column": "c", "tiles_per_step": 9}, "fills steps by tiles"),
        ({"ensure_tasks": -1}, "ensure_tasks is -1"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            TrainConfig(**wrong)  # type: ignore[arg-type]
        assert caught.value.hint
    assert TrainConfig(sampling="dataset_balanced", more_tables=("b.csv",)).more_tables == ("b.csv",)


def test_without_settings_there_are_no_strata() -> None:
    targets = {"yes": np.array([0.0, 1.0])}
    assert strata_of(TrainConfig(), np.array([0, 1]), targets, [YES]) is None
    with pytest.raises(UsageError, match="nothing says which data set"):
        strata_of(BALANCED, None, targets, [YES])
    # Groups whose cases are all without labels are gone: those that are left are numbered anew.
    found = strata_of(BALANCED, np.array([7, 3]), targets, [YES])
    assert found is not None
    assert (found.groups.tolist(), found.count, found.least) == ([1, 0], 2, 0)


@pytest.mark.parametrize("aggregator", ["", "mean", "abmil(hidden=8, attention=4, dropout=0.0)"])
def test_training_makes_such_steps_of_rows_and_of_bags(
    labelled: Callable[..., Labelled], quick: TrainConfig, aggregator: str
) -> None:
    """As the loop sees them: 45 cases of one data set, 12 of the other, a task labelled in four cases of the first."""
    rng = np.random.default_rng(0)
    sizes = [1] * 57 if not aggregator else rng.integers(1, 9, 57).tolist()
    groups = np.repeat([4, 9], [45, 12])
    yes = np.where(groups == 9, np.arange(57) % 2, np.nan)
    size = np.where(np.arange(57) < 4, np.arange(57), np.nan) * 1.0
    # The rest of the first data set has a label that is the same everywhere, so that no case is left out.
    other = Task(name="other", kind="binary", classes=("n", "y"))
    made = labelled(rng.normal(size=(sum(sizes), 8)), {"yes": yes, "size": size, "other": np.arange(57) % 2.0}, sizes)
    train = replace(made, groups=groups)
    config = replace(quick, sampling="dataset_balanced", cohort_column="c", ensure_tasks=2, batch_size=12, max_tiles=4)
    seen: list[torch.Tensor] = []

    def watch(batch: Batch) -> None:
        seen.append(batch._targets)

    tasks = [YES, SIZE, other]
    fitted = fit(train, made, tasks=tasks, config=config, aggregator=aggregator, hooks=Hooks(watch=watch))
    assert len(seen) == fitted.steps == 60
    for targets in seen:
        # Only the second data set has the first task: half of a step is its cases.
        assert (~targets[:, 0].isnan()).sum() == 6
        assert (~targets[:, 1].isnan()).sum() >= 2
    again = fit(train, made, tasks=tasks, config=config, aggregator=aggregator)
    states = [list(found.members[0].state_dict().values()) for found in (fitted, again)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_an_epoch_is_as_many_steps_as_without(quick: TrainConfig) -> None:
    config = replace(quick, sampling="dataset_balanced", cohort_column="c", min_steps=1, max_steps=1000, epochs=3)
    targets = torch.zeros(90, 1)
    data = Data(targets=targets, pooled=torch.zeros(90, 2), strata=strata((80, 10)))
    assert data.steps(config) == Data(targets=targets, pooled=torch.zeros(90, 2)).steps(config) == 3 * (90 // 16)


def test_a_sweep_balances_data_sets_and_leaves_tasks_to_fit(
    labelled: Callable[..., Labelled], quick: TrainConfig, drawn: list[np.ndarray]
) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], [36, 12])
    yes = (rng.random(48) > 0.5).astype(float)
    made = replace(labelled(rng.normal(size=(48, 8)), {"yes": yes}), groups=groups)
    fold = np.arange(48) % 4
    entries = [Entry(train=np.flatnonzero(fold > 1), val=np.flatnonzero(fold == k), seed=k) for k in range(2)]
    config = replace(quick, sampling="dataset_balanced", cohort_column="c", batch_size=8)
    found = sweep(made, entries, tasks=[YES], config=config)
    assert len(found) == 2
    learnt = np.flatnonzero(fold > 1)
    steps_of = [groups[learnt][rows] for rows in drawn if len(rows) == 8]
    assert len(steps_of) >= 60
    assert all((of == 0).sum() == 4 for of in steps_of)
    assert not can_sweep(replace(config, ensure_tasks=1))
    with pytest.raises(UsageError, match="ensure_tasks 1 cannot be trained together"):
        sweep(made, entries, tasks=[YES], config=replace(config, ensure_tasks=1))
    with pytest.raises(UsageError, match="nothing says which data set"):
        sweep(replace(made, groups=None), entries, tasks=[YES], config=config)
