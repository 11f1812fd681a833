from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from histotl.core.errors import TableError
from histotl.learn.objective import Objective, class_weights
from histotl.learn.task import Task

N = 40
TASKS = (
    Task(name="type", kind="multiclass", classes=("a", "b", "c")),
    Task(name="yes", kind="binary", classes=("n", "y"), weight=2.0),
    Task(name="grade", kind="ordinal", classes=("0", "1", "2", "3")),
    Task(name="size", kind="regression"),
)


def full_targets(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "type": rng.permutation(np.arange(N) % 3).astype(float),
        "yes": rng.permutation(np.arange(N) % 2).astype(float),
        "grade": rng.permutation(np.arange(N) % 4).astype(float),
        "size": rng.normal(5, 2, N),
    }


def outputs(objective: Objective, n: int = N) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(n, o, generator=generator).requires_grad_() for name, o in objective.n_outputs()}


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_unlabelled_rows_count_exactly_as_absent_ones(task: str) -> None:
    targets = full_targets()
    targets[task][np.random.default_rng(1).random(N) < 0.5] = np.nan
    objective = Objective(TASKS, targets)
    found, keep = outputs(objective), torch.from_numpy(np.flatnonzero(~np.isnan(targets[task])))
    masked = objective.losses(found, objective.tensor(targets))[task]
    absent = objective.losses({n: o[keep] for n, o in found.items()}, objective.tensor(targets)[keep])[task]
    assert torch.equal(masked, absent)
    masked.backward()
    gradient = found[task].grad
    assert gradient is not None
    lost = np.isnan(targets[task])
    assert (gradient[torch.from_numpy(lost)] == 0).all()
    assert (gradient[torch.from_numpy(~lost)] != 0).any(dim=1).all()


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_batch_without_a_label_of_a_task_is_a_batch_without_the_task(task: str) -> None:
    targets = full_targets()
    with_task, without = Objective(TASKS, targets), Objective([t for t in TASKS if t.name != task], targets)
    batch = with_task.tensor(targets)
    batch[:, [t.name for t in TASKS].index(task)] = torch.nan
    found = outputs(with_task)
    losses = with_task.losses(found, batch)
    assert task not in losses
    rest = without.losses(found, without.tensor(targets))
    assert torch.equal(with_task.total(losses), without.total(rest))
    gradients = [
        torch.autograd.grad(objective.total(objective.losses(found, t)), [found[name] for name in rest])
        for objective, t in ((with_task, batch), (without, without.tensor(targets)))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_class_weights_are_those_of_scikit_learn_and_keep_the_total() -> None:
    y = np.repeat([0, 1, 2], [50, 7, 3])
    weights = class_weights(np.bincount(y))
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=y))
    assert weights[y].sum() == pytest.approx(len(y))


def test_the_constant_predictor_has_the_prior_loss() -> None:
    targets = full_targets()
    targets["type"][:25] = 0
    for balance in ("balanced", "none"):
        objective = Objective(TASKS, targets, class_balance=balance)  # type: ignore[arg-type]
        share = np.bincount(targets["type"].astype(int)) / N if balance == "none" else np.full(3, 1 / 3)
        constant = {"type": torch.log(torch.tensor(share, dtype=torch.float32)).expand(N, 3)}
        zeros = {name: torch.zeros(N, o) for name, o in objective.n_outputs()} | constant
        losses = objective.losses(zeros, objective.tensor(targets))
        for name in ("type", "yes", "size"):
            assert float(losses[name]) == pytest.approx(objective.facts[name].prior_loss, rel=1e-5)
    assert Objective(TASKS, full_targets()).facts["yes"].prior_loss == pytest.approx(math.log(2))


def test_task_weight_scales_its_part() -> None:
    targets = full_targets()
    objective = Objective(TASKS, targets)
    losses = objective.losses(outputs(objective), objective.tensor(targets))
    expected = sum(t.weight * losses[t.name].item() / objective.facts[t.name].prior_loss for t in TASKS)
    assert objective.total(losses).item() == pytest.approx(expected, rel=1e-5)


def test_no_label_and_no_spread_are_refused() -> None:
    targets = full_targets()
    with pytest.raises(TableError, match="no labelled row"):
        Objective(TASKS, targets | {"yes": np.full(N, np.nan)})
    with pytest.raises(TableError, match="all 40 numbers are 3"):
        Objective(TASKS, targets | {"size": np.full(N, 3.0)})


def test_numbers_beyond_squaring_are_refused() -> None:
    task = Task(name="x", kind="regression")
    with pytest.raises(TableError, match="too large"):
        Objective([task], {"x": np.array([0.0, 1e300])})
