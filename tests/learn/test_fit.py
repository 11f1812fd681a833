from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from histotl.core.errors import TableError, UsageError
from histotl.core.progress import Step
from histotl.learn.bags import Packed
from histotl.learn.calibrators import averaged
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Fitted, Labelled, fit
from histotl.learn.network import evaluating
from histotl.learn.task import Task

YES = Task(name="yes", kind="binary", classes=("n", "y"))
SIZE = Task(name="size", kind="regression")
Make = Callable[..., Labelled]


def answers(fitted: Fitted, labelled: Labelled, task: Task = YES) -> np.ndarray:
    packed = labelled.bags.gather(np.arange(len(labelled.bags)))
    with evaluating(*fitted.members):
        return averaged(task, [m(packed.x, packed.offsets).tasks[task.name] for m in fitted.members])


def states(fitted: Fitted) -> list[torch.Tensor]:
    return [value for member in fitted.members for value in member.state_dict().values()]


def cohort(make: Make, n: int = 120, seed: int = 0) -> tuple[Labelled, Labelled]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    targets = {"yes": (x[:, 0] + 0.3 * rng.normal(size=n) > 0).astype(float), "size": 10 * x[:, 1] + 3}
    half = n // 2
    parts = (slice(0, half), slice(half, n))
    train, val = (make(x[p], {name: t[p] for name, t in targets.items()}) for p in parts)
    return train, val


def test_same_seed_same_weights_other_seed_others(labelled: Make, quick: TrainConfig) -> None:
    train, val = cohort(labelled)
    config = replace(quick, dropout=0.3)
    first = fit(train, val, tasks=[YES, SIZE], config=config)
    before = torch.random.get_rng_state()
    second = fit(train, val, tasks=[YES, SIZE], config=config)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(states(first), states(second), strict=True))
    other = fit(train, val, tasks=[YES, SIZE], config=replace(config, seed=1))
    assert not torch.equal(states(first)[-2], states(other)[-2])


def test_rows_without_any_label_are_absent(labelled: Make, quick: TrainConfig) -> None:
    train, val = cohort(labelled)
    plain = fit(train, val, tasks=[YES, SIZE], config=quick)
    x = train.bags.source.read(train.bags.rows)
    at = [0, 7, 30]
    padded_x = np.insert(x, at, 1000.0, axis=0)
    padded = labelled(padded_x, {n: np.insert(t, at, np.nan) for n, t in train.targets.items()})
    assert len(padded.bags) == len(train.bags) + 3
    again = fit(padded, val, tasks=[YES, SIZE], config=quick)
    assert all(torch.equal(a, b) for a, b in zip(states(plain), states(again), strict=True))


def test_as_good_as_logistic_regression_and_numbers_are_found(labelled: Make, quick: TrainConfig) -> None:
    train, val = cohort(labelled, 400)
    fitted = fit(train, val, tasks=[YES, SIZE], config=replace(quick, min_steps=200, max_steps=200, members=2))
    x, y = (train.bags.source.read(part.bags.rows) for part in (train, val))
    baseline = LogisticRegression().fit(x, train.targets["yes"]).predict_proba(y)[:, 1]
    ours = answers(fitted, val)[:, 1]
    assert roc_auc_score(val.targets["yes"], ours) > roc_auc_score(val.targets["yes"], baseline) - 0.01
    fact = fitted.facts["size"]
    number = answers(fitted, val, SIZE)[:, 0] * fact.std + fact.mean
    assert np.corrcoef(number, val.targets["size"])[0, 1] > 0.95


def test_random_labels_stay_at_chance(labelled: Make, quick: TrainConfig) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 8)), rng.integers(0, 2, 900).astype(float)
    train, val, test = (labelled(x[s], {"yes": y[s]}) for s in (slice(0, 200), slice(200, 400), slice(400, 900)))
    fitted = fit(train, val, tasks=[YES], config=quick)
    # 500 rows: the standard error of a chance AUROC is 0.026.
    assert abs(roc_auc_score(test.targets["yes"], answers(fitted, test)[:, 1]) - 0.5) < 0.08


@pytest.mark.parametrize(("aggregator", "above"), [("abmil(hidden=32, attention=16, dropout=0.0)", 0.95)])
def test_a_needle_in_the_bag_is_found(labelled: Make, quick: TrainConfig, aggregator: str, above: float) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 7, 150, *rng.integers(20, 120, 117).tolist()]
    x, y = rng.normal(size=(sum(sizes), 8)), np.arange(120) % 2
    starts = np.cumsum([0, *sizes[:-1]])
    needles = starts + rng.integers(0, sizes)
    x[needles[y == 1], 0] += 6
    both = labelled(x, {"yes": y.astype(float)}, sizes)
    train, val = (
        Labelled(bags=both.bags.subset(p), targets={"yes": both.targets["yes"][p]})
        for p in (np.arange(80), np.arange(80, 120))
    )
    config = replace(quick, min_steps=250, max_steps=250, learning_rates=(0.003,), max_tiles=100)
    fitted = fit(train, val, tasks=[YES], config=config, aggregator=aggregator)
    assert roc_auc_score(val.targets["yes"], answers(fitted, val)[:, 1]) > above
    packed: Packed = both.bags.gather(np.arange(120))
    with evaluating(*fitted.members):
        weights = fitted.members[0](packed.x, packed.offsets).weights.numpy()
    found = [
        weights[needles[b]] >= weights[starts[b] : starts[b] + sizes[b]].max()
        for b in range(120)
        if y[b] and sizes[b] > 1
    ]
    assert np.mean(found) > 0.9
    # The mean of a hundred tiles hides one: the same training without attention is worse.
    mean = fit(train, val, tasks=[YES], config=config, aggregator="mean")
    assert roc_auc_score(val.targets["yes"], answers(mean, val)[:, 1]) < above


def test_mean_pooling_equals_training_on_means(labelled: Make, quick: TrainConfig) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60).tolist()
    x, y = rng.normal(size=(sum(sizes), 8)), np.arange(60) % 2
    bags = labelled(x, {"yes": y.astype(float)}, sizes)
    fitted = fit(bags, bags, tasks=[YES], config=quick, aggregator="mean")
    means = np.stack([part.mean(axis=0) for part in np.split(x, np.cumsum(sizes)[:-1])])
    flat = labelled(means, {"yes": y.astype(float)})
    direct = fit(flat, flat, tasks=[YES], config=quick)
    np.testing.assert_allclose(answers(fitted, bags), answers(direct, flat), atol=2e-3)


def test_evaluation_is_deterministic_and_mode_is_restored(labelled: Make, quick: TrainConfig) -> None:
    train, val = cohort(labelled)
    network = fit(train, val, tasks=[YES], config=replace(quick, dropout=0.5)).members[0]
    x, offsets = torch.randn(5, 8), torch.arange(6)
    network.train()
    with evaluating(network):
        first, second = (network(x, offsets).tasks["yes"] for _ in range(2))
        assert not first.requires_grad
    assert torch.equal(first, second)
    assert network.training
    assert network(x, offsets).tasks["yes"].requires_grad


def test_history_rates_and_progress(labelled: Make, quick: TrainConfig) -> None:
    train, val = cohort(labelled)
    told: list[Step] = []
    config = replace(quick, members=2, learning_rates=(1e-6, 0.01))
    fitted = fit(train, val, tasks=[YES], config=config, report=told.append)
    assert fitted.learning_rate == 0.01
    assert fitted.tried[0.01] < fitted.tried[1e-6]
    assert [step.done for step in told] == [1, 2, 3]
    assert {entry["member"] for entry in fitted.history} == {0, 1}
    assert len(fitted.history) == 3 * 20
    kept = [entry["val"] for entry in fitted.history if entry["member"] == 0 and entry["learning_rate"] == 0.01]
    assert min(kept) == fitted.tried[0.01]  # type: ignore[type-var]


def test_tiny_sets_work_and_unlabelled_validation_is_refused(labelled: Make, quick: TrainConfig) -> None:
    x = np.random.default_rng(0).normal(size=(3, 40))
    tiny = labelled(x, {"yes": np.array([0.0, 1.0, 1.0])})
    assert np.isfinite(answers(fit(tiny, tiny, tasks=[YES], config=quick), tiny)).all()
    linear = fit(tiny, tiny, tasks=[YES], config=replace(quick, hidden=0))
    assert np.isfinite(answers(linear, tiny)).all()
    with pytest.raises(TableError, match="no row of val"):
        fit(tiny, labelled(x, {"yes": np.full(3, np.nan)}), tasks=[YES], config=quick)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"dropout": 1.0},
        {"members": 0},
        {"fractions": (0.9, 0.2, 0.2)},
        {"learning_rates": ()},
        {"patient": ""},
        {"alpha": 0.0},
        {"bag": "patient", "level": "tile"},
    ):
        with pytest.raises(UsageError) as caught:
            TrainConfig(**wrong)  # type: ignore[arg-type]
        assert caught.value.hint
