"""Tasks made to help or to hurt each other are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.learn._trainer import Hooks
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.network import evaluating
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task
from histotl.learn.transfer import Affinity, _partitions, group_tasks, task_affinity

WIDTH, LABELS = 24, 20
NAMES = tuple("abcdef")


def labelled(x: np.ndarray, targets: dict[str, np.ndarray]) -> Labelled:
    return Labelled(bags=Bags.singles(ArrayRows(x.astype(np.float32)), np.arange(len(x))), targets=targets)


def tasks(*names: str) -> list[Task]:
    return [Task(name=name, kind="regression") for name in names]


def helping(seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Six numbers that all depend on the same one of 24 directions; 20 labels each, on rows of their own."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:, :1] @ rng.normal(size=(1, len(NAMES)))
    x = rng.normal(size=(LABELS * len(NAMES) + 200 + 1000, WIDTH))
    y = x @ directions + 0.1 * rng.normal(size=(len(x), len(NAMES)))
    n = LABELS * len(NAMES)
    owner = np.arange(n) % len(NAMES)
    train = labelled(x[:n], {name: np.where(owner == i, y[:n, i], np.nan) for i, name in enumerate(NAMES)})
    val, test = (
        labelled(x[s], {name: y[s, i] for i, name in enumerate(NAMES)})
        for s in (slice(n, n + 200), slice(n + 200, None))
    )
    return train, val, test


def errors(config: TrainConfig, parts: tuple[Labelled, Labelled, Labelled], *names: str) -> list[float]:
    """Mean squared error on test, in variances."""
    train, val, test = (Labelled(bags=p.bags, targets={n: p.targets[n] for n in names}) for p in parts)
    fitted = fit(train, val, tasks=tasks(*names), config=config)
    packed = test.bags.gather(np.arange(len(test.bags)))
    found = []
    with evaluating(*fitted.members):
        answers = fitted.members[0](packed.x, packed.offsets).tasks
    for name in names:
        fact = fitted.facts[name]
        answer = answers[name][:, 0].numpy() * fact.std + fact.mean
        found.append(float(np.mean((answer - test.targets[name]) ** 2) / test.targets[name].var()))
    return found


CONFIG = TrainConfig(
    hidden=32,
    dropout=0.0,
    members=1,
    min_steps=100,
    max_steps=100,
    learning_rates=(0.01,),
    batch_size=120,
    device="cpu",
)


def test_tasks_of_one_subspace_have_positive_affinity_and_learn_better_together() -> None:
    parts = helping(2)
    # Measured where labels abound: of 20 rows in 24 dimensions a gradient is mostly noise.
    found = task_affinity(parts[2], parts[1], tasks=tasks(*NAMES), config=CONFIG)
    assert (found.matrix > 0).all()
    assert all(len(group) > 1 for group in group_tasks(found, 6))
    together, alone = errors(CONFIG, parts, *NAMES), [errors(CONFIG, parts, name)[0] for name in NAMES]
    assert np.mean(together) < 0.8 * np.mean(alone), (together, alone)


def opposed() -> tuple[Labelled, Labelled]:
    """Two numbers that rise with the first feature, two that rise against it: a trunk of one unit serves one pair."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    sign = dict(zip("abcd", (1, 1, -1, -1), strict=True))
    y = {name: np.maximum(s * x[:, 0], 0) + 0.1 * rng.normal(size=300) for name, s in sign.items()}
    return labelled(x[:200], {n: v[:200] for n, v in y.items()}), labelled(x[200:], {n: v[200:] for n, v in y.items()})


@pytest.mark.parametrize("method", ["lookahead", "gradient"])
def test_tasks_that_pull_the_trunk_apart_have_negative_affinity_and_are_split(method: str) -> None:
    train, val = opposed()
    config = replace(CONFIG, hidden=1, batch_size=50, min_steps=200, max_steps=200)
    found = task_affinity(train, val, tasks=tasks(*"abcd"), config=config, method=method)  # type: ignore[arg-type]
    assert found.names == ("a", "b", "c", "d")
    assert (found.samples == 20).all()
    assert (found.matrix[[0, 1, 2, 3], [1, 0, 3, 2]] > 0).all()
    assert (np.diag(found.matrix) > 0).all()
    assert (found.matrix[:2, 2:] < 0).all()
    assert (found.matrix[2:, :2] < 0).all()
    np.testing.assert_allclose(np.diag(found.cosines), 1)
    assert (found.cosines[:2, 2:] < 0).all()
    assert group_tasks(found, 4) == (("a", "b"), ("c", "d"))
    assert group_tasks(found, 1) == (("a", "b", "c", "d"),)


def test_looking_ahead_changes_nothing_and_its_first_order_form_agrees() -> None:
    train, val = opposed()
    config = replace(CONFIG, hidden=4, dropout=0.3, batch_size=50, min_steps=30, max_steps=30)
    watched: list[object] = []
    plain, seen = (
        fit(train, val, tasks=tasks(*"abcd"), config=config, hooks=hooks)
        for hooks in (Hooks(), Hooks(watch=lambda batch: watched.append(batch.again())))
    )
    assert len(watched) == 30
    for first, second in zip(plain.members[0].parameters(), seen.members[0].parameters(), strict=True):
        assert torch.equal(first, second)
    found = [
        task_affinity(train, val, tasks=tasks(*"abcd"), config=config, method=method, every=5, step=1e-3).matrix
        for method in ("lookahead", "gradient")
    ]
    np.testing.assert_allclose(found[0], found[1], atol=0.05 * np.abs(found[1]).max())


def test_tasks_that_never_met_are_neither_friends_nor_foes() -> None:
    unknown = np.array([[1.0, np.nan], [np.nan, 1.0]])
    lone = Affinity(names=("a", "b"), matrix=unknown, cosines=unknown, samples=np.eye(2, dtype=np.int64))
    assert group_tasks(lone, 2) == (("a", "b"),)


def test_every_grouping_is_looked_at_and_the_best_is_taken() -> None:
    counts = [sum(1 for _ in _partitions(n, n)) for n in range(1, 9)]
    assert counts == [1, 2, 5, 15, 52, 203, 877, 4140]  # Bell numbers
    assert sum(1 for _ in _partitions(5, 2)) == 16
    matrix = np.array([[9.0, 2.0, -1.0], [2.0, 9.0, 0.5], [-3.0, 0.5, 9.0]])
    found = Affinity(names=("a", "b", "c"), matrix=matrix, cosines=matrix, samples=np.ones((3, 3), dtype=np.int64))
    # {a, b}: 2 + 2, c alone: 0. All together: (2 - 3)/2 + (2 + .5)/2 + (-1 + .5)/2 = 0.5.
    assert group_tasks(found, 3) == (("a", "b"), ("c",))
    many = Affinity(
        names=tuple("abcdefghi"), matrix=np.eye(9), cosines=np.eye(9), samples=np.ones((9, 9), dtype=np.int64)
    )
    for wrong in (lambda: group_tasks(many, 2), lambda: group_tasks(found, 0)):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert caught.value.hint


def test_one_task_and_wrong_lengths_are_refused() -> None:
    train, val = opposed()
    for names, given in (("a", {}), ("ab", {"every": 0}), ("ab", {"step": 0.0})):
        with pytest.raises(UsageError) as caught:
            task_affinity(train, val, tasks=tasks(*names), config=CONFIG, **given)  # type: ignore[arg-type]
        assert caught.value.hint
