from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from histotl.core.errors import TableError, UsageError
from histotl.learn.labels import known_rows
from histotl.learn.objective import Objective, class_weights
from histotl.learn.task import Task

N = 40
TASKS = (
    Task(name="type", kind="multiclass", classes=("a", "b", "c")),
    Task(name="yes", kind="binary", classes=("n", "y"), weight=2.0),
    Task(name="grade", kind="ordinal", classes=("0", "1", "2", "3")),
    Task(name="size", kind="regression"),
    *(
        Task(
            name=f"grade_{loss.replace('+', '.')}", kind="ordinal", classes=("0", "1", "2", "3"), options={"loss": loss}
        )
        for loss in ("coral", "cumulative_link", "ce+regression", "emd2")
    ),
    Task(name="size_gaussian", kind="regression", options={"loss": "gaussian_nll"}),
    Task(name="size_quantile", kind="regression", options={"loss": "quantile"}),
    Task(name="signs", kind="multilabel", classes=("a", "b", "c")),
    Task(name="votes", kind="multiclass", votes=("a", "b", "c")),
    Task(name="os_cox", kind="survival", event="dead"),
    Task(name="os_discrete", kind="survival", event="dead", options={"loss": "discrete", "bins": 4}),
)


def full_targets(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {
        "type": rng.permutation(np.arange(N) % 3).astype(float),
        "yes": rng.permutation(np.arange(N) % 2).astype(float),
        "grade": rng.permutation(np.arange(N) % 4).astype(float),
        "size": rng.normal(5, 2, N),
        "signs": rng.integers(0, 2, (N, 3)).astype(float),
        "votes": rng.dirichlet(np.ones(3), N),
    }
    os = np.column_stack([rng.exponential(20, N) + 0.1, np.arange(N) % 3 > 0])
    return {task.name: found.get(task.name, found.get(task.name.split("_")[0], os)) for task in TASKS}


def outputs(objective: Objective, n: int = N) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(n, o, generator=generator).requires_grad_() for name, o in objective.n_outputs()}


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_unlabelled_rows_count_exactly_as_absent_ones(task: str) -> None:
    targets = full_targets()
    targets[task] = targets[task].copy()
    targets[task][np.random.default_rng(1).random(N) < 0.5] = np.nan
    objective = Objective(TASKS, targets)
    found, keep = outputs(objective), torch.from_numpy(np.flatnonzero(known_rows(targets[task])))
    masked = objective.losses(found, objective.tensor(targets))[task]
    rows = found[task].detach()[keep].requires_grad_()
    absent = objective.losses(
        {n: rows if n == task else o[keep] for n, o in found.items()}, objective.tensor(targets)[keep]
    )[task]
    assert torch.equal(masked, absent)
    masked.backward()
    absent.backward()
    gradient = found[task].grad
    assert gradient is not None
    assert torch.equal(gradient[keep], rows.grad)
    lost = ~known_rows(targets[task])
    assert (gradient[torch.from_numpy(lost)] == 0).all()
    # Who was last seen before the first event is in no risk set.
    assert task == "os_cox" or (gradient[torch.from_numpy(~lost)] != 0).any(dim=1).all()


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_batch_without_a_label_of_a_task_is_a_batch_without_the_task(task: str) -> None:
    targets = full_targets()
    with_task, without = Objective(TASKS, targets), Objective([t for t in TASKS if t.name != task], targets)
    batch = with_task.tensor(targets)
    batch[:, with_task.column(task)] = torch.nan
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
        for name in ("type", "yes", "size", "size_gaussian", "size_quantile", "os_cox"):
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


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_no_constant_costs_less_than_the_prior_loss_and_one_costs_as_much(task: str) -> None:
    one = next(t for t in TASKS if t.name == task)
    targets = full_targets()
    for balance in ("balanced", "effective", "none"):
        objective = Objective([one], targets, class_balance=balance)  # type: ignore[arg-type]
        constant = torch.zeros(objective.n_outputs()[0][1], requires_grad=True)
        batch, search = objective.tensor(targets), torch.optim.Adam([constant], lr=0.05)
        prior, least = objective.facts[task].prior_loss, math.inf
        for _ in range(400):
            loss = objective.losses({task: constant.expand(N, -1)}, batch)[task]
            least = min(least, loss.item())
            search.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            search.step()
        if one.nature.answers == "number":
            # Its constant predictor is the mean (and normal quantiles), not the best number for the loss.
            zeros = objective.losses({task: torch.zeros(N, len(constant))}, batch)[task].item()
            assert prior == pytest.approx(zeros, rel=1e-5)
            assert least <= prior + 1e-6
        else:
            assert prior == pytest.approx(least, rel=2e-3)


def test_an_unknown_label_of_several_counts_as_absent() -> None:
    task = next(t for t in TASKS if t.name == "signs")
    targets = {"signs": full_targets()["signs"].copy()}
    targets["signs"][np.random.default_rng(0).random((N, 3)) < 0.4] = np.nan
    objective = Objective([task], targets, class_balance="none")
    found, y = outputs(objective)["signs"], objective.tensor(targets)
    loss = objective.losses({"signs": found}, y)["signs"]
    known = ~torch.isnan(y)
    entries = torch.nn.functional.binary_cross_entropy_with_logits(found[known], y[known])
    torch.testing.assert_close(loss, entries)
    (gradient,) = torch.autograd.grad(loss, found)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()


def test_effective_weights_lie_between_none_and_balanced_and_keep_the_total() -> None:
    counts = np.array([5000, 400, 20])
    weights = class_weights(counts, "effective")
    assert (weights * counts).sum() == pytest.approx(counts.sum())
    # Cui et al. 2019: in proportion to (1 - beta) / (1 - beta^n).
    expected = (1 - 0.999) / (1 - 0.999**counts)
    np.testing.assert_allclose(weights / weights[0], expected / expected[0])
    balanced = class_weights(counts)
    assert 1 < weights[2] / weights[0] < balanced[2] / balanced[0]
    np.testing.assert_array_equal(class_weights(counts, "none"), 1)


def test_logit_adjustment_adds_the_log_prior_in_training() -> None:
    target = np.repeat([0.0, 1.0, 2.0], [50, 8, 2])
    task = Task(name="t", kind="multiclass", classes=("a", "b", "c"))
    objective = Objective([task], {"t": target}, class_balance="logit_adjust")
    found = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    prior = np.bincount(target.astype(int)) / 60
    loss = objective.losses({"t": found}, objective.tensor({"t": target}))["t"]
    plain = torch.nn.functional.cross_entropy(
        found + torch.tensor(np.log(prior), dtype=torch.float32), torch.from_numpy(target).long()
    )
    torch.testing.assert_close(loss, plain)
    facts = objective.facts["t"]
    assert facts.prior == pytest.approx(prior)
    assert facts.implied == pytest.approx([1 / 3] * 3)
    assert facts.prior_loss == pytest.approx(-(prior * np.log(prior)).sum())
    with pytest.raises(UsageError, match="no logits to adjust"):
        Objective([TASKS[2]], full_targets(), class_balance="logit_adjust")


def test_a_task_has_its_own_class_balance() -> None:
    target = np.repeat([0.0, 1.0], [30, 10])
    task = Task(name="t", kind="binary", classes=("a", "b"), class_balance="none")
    assert Objective([task], {"t": target}).facts["t"].class_weight == ()


def test_auxiliary_tasks_do_not_choose_the_checkpoint() -> None:
    main, helper = TASKS[1], Task(name="size", kind="regression", auxiliary=True)
    objective = Objective([main, helper], full_targets())
    losses = objective.losses(outputs(objective), objective.tensor(full_targets()))
    assert objective.total(losses) == objective.total({"yes": losses["yes"]})
    assert objective.total({"size": losses["size"]}) > 0
    assert objective.joined(losses) > objective.total(losses)
