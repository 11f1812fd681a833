from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from histotl.core.errors import TableError
from histotl.learn.concordance import censoring_importance, concordance, kaplan_meier
from histotl.learn.heads._hazard import baseline_hazard, partial_likelihood
from histotl.learn.heads.survival import Survival
from histotl.learn.objective import Objective
from histotl.learn.task import Task

# Test data 1 of Therneau and Grambsch (2000), appendix E: times, events and one covariate.
TIME = np.array([1.0, 1.0, 6.0, 6.0, 8.0, 9.0])
EVENT = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
X = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])


def loss_of(score: np.ndarray, time: np.ndarray, event: np.ndarray, ties: str) -> float:
    found = partial_likelihood(torch.tensor(score), torch.tensor(time), torch.tensor(event) > 0, ties=ties)  # type: ignore[arg-type]
    return float(found) * event.sum()


def by_hand(score: np.ndarray, time: np.ndarray, event: np.ndarray, ties: str) -> float:
    total = 0.0
    for t in np.unique(time[event > 0]):
        dead = np.flatnonzero((time == t) & (event > 0))
        at_risk, tied = np.exp(score[time >= t]).sum(), np.exp(score[dead]).sum()
        for place, row in enumerate(dead):
            left = place / len(dead) * tied if ties == "efron" else 0.0
            total += np.log(at_risk - left) - score[row]
    return float(total)


@pytest.mark.parametrize("beta", [0.0, 0.7, -2.0])
def test_partial_likelihood_is_the_closed_form_of_the_book(beta: float) -> None:
    r = np.exp(beta)
    breslow = 2 * beta - np.log(3 * r + 3) - 2 * np.log(r + 3)
    efron = 2 * beta - np.log(3 * r + 3) - np.log(r + 3) - np.log((r + 5) / 2)
    assert -loss_of(beta * X, TIME, EVENT, "breslow") == pytest.approx(breslow, rel=1e-12)
    assert -loss_of(beta * X, TIME, EVENT, "efron") == pytest.approx(efron, rel=1e-12)


@pytest.mark.parametrize(("ties", "best"), [("breslow", 1.475285), ("efron", 1.676857)])
def test_its_maximum_is_the_published_coefficient(ties: str, best: float) -> None:
    found = minimize_scalar(lambda beta: loss_of(beta * X, TIME, EVENT, ties), bounds=(-5, 5), method="bounded")
    assert found.x == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_partial_likelihood_of_many_ties_is_that_by_hand(ties: str) -> None:
    rng = np.random.default_rng(0)
    score, time = rng.normal(size=200) * 2, rng.integers(1, 15, 200).astype(float)
    event = (rng.random(200) < 0.6).astype(float)
    assert loss_of(score, time, event, ties) == pytest.approx(by_hand(score, time, event, ties), rel=1e-12)
    assert np.isfinite(loss_of(score * 1e3, time, event, ties))


def survival_objective(n: int = 60) -> tuple[Objective, dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    target = np.column_stack([rng.integers(1, 20, n), rng.random(n) < 0.5]).astype(float)
    target[::7] = np.nan
    task = Task(name="os", kind="survival", column="months", event="dead")
    targets = {"os": target}
    return Objective([task], targets), targets, ~np.isnan(target[:, 0])


def full_gradient(objective: Objective, targets: dict[str, np.ndarray], scores: torch.Tensor) -> torch.Tensor:
    known = ~np.isnan(targets["os"][:, 0])
    leaf = scores.double().requires_grad_()
    time, event = torch.tensor(targets["os"][known]).T
    partial_likelihood(leaf[torch.from_numpy(known), 0], time, event > 0, ties="efron").backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def test_all_rows_in_one_step_have_exactly_the_full_likelihood() -> None:
    objective, targets, known = survival_objective()
    scores = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    leaf = scores.clone().requires_grad_()
    loss = objective.losses({"os": leaf}, objective.tensor(targets))["os"]
    loss.backward()
    target = targets["os"][known]
    expected = by_hand(scores[torch.from_numpy(known), 0].double().numpy(), *target.T, "efron")
    assert loss.item() == pytest.approx(expected / target[:, 1].sum(), rel=1e-5)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), full_gradient(objective, targets, scores), rtol=1e-4, atol=1e-7)
    assert (leaf.grad[torch.from_numpy(~known)] == 0).all()


def test_the_rows_of_a_step_have_the_gradient_of_the_full_likelihood() -> None:
    objective, targets, known = survival_objective()
    scores = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    batch = objective.tensor(targets)
    objective.losses({"os": scores.clone().requires_grad_()}, batch)
    full = full_gradient(objective, targets, scores)
    for rows in torch.arange(60).split(16):
        leaf = scores[rows].clone().requires_grad_()
        loss = objective.losses({"os": leaf}, batch[rows])["os"]
        loss.backward()
        assert leaf.grad is not None
        # Scaled, so that the mean over steps is the gradient of the mean over rows.
        factor = known.sum() / known[rows.numpy()].sum()
        torch.testing.assert_close(leaf.grad.double(), full[rows] * factor, rtol=1e-4, atol=1e-7)


def test_rows_without_a_score_take_no_part_and_a_new_network_begins_without_scores() -> None:
    objective, targets, known = survival_objective()
    scores, batch = torch.randn(60, 1, generator=torch.Generator().manual_seed(0)), objective.tensor(targets)
    rows = np.arange(20)
    first = objective.losses({"os": scores[:20]}, batch[:20])["os"]
    some = rows[known[:20]]
    expected = by_hand(scores[some, 0].double().numpy(), *targets["os"][some].T, "efron")
    assert first.item() == pytest.approx(expected / targets["os"][some, 1].sum(), rel=1e-5)
    objective.losses({"os": scores.clone().requires_grad_()}, batch)
    assert objective.losses({"os": scores[:20]}, batch[:20])["os"].item() != first.item()
    objective.begin()
    assert objective.losses({"os": scores[:20]}, batch[:20])["os"].item() == first.item()


def test_networks_side_by_side_have_risk_sets_of_their_own() -> None:
    objective, targets, _ = survival_objective()
    batch, scores = objective.tensor(targets), torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    alone = objective.losses({"os": scores[:20]}, batch[:20])["os"].item()
    one, other = objective.apart(), objective.apart()
    one.losses({"os": scores.clone().requires_grad_()}, batch)
    assert one.losses({"os": scores[:20]}, batch[:20])["os"].item() != alone
    assert other.losses({"os": scores[:20]}, batch[:20])["os"].item() == alone
    assert objective.losses({"os": scores[:20]}, batch[:20])["os"].item() == alone
    assert not objective.rowwise


def test_other_rows_are_a_likelihood_of_their_own() -> None:
    objective, targets, _ = survival_objective()
    objective.losses({"os": torch.randn(60, 1).requires_grad_()}, objective.tensor(targets))
    other = {"os": np.array([[3.0, 1.0], [5.0, 0.0], [2.0, 1.0]])}
    scores = torch.tensor([[0.5], [-1.0], [0.0]])
    loss = objective.losses({"os": scores}, objective.tensor(other))["os"]
    assert loss.item() == pytest.approx(by_hand(scores[:, 0].numpy(), *other["os"].T, "efron") / 2, rel=1e-5)
    nobody = {"os": np.array([[3.0, 0.0], [5.0, 0.0]])}
    assert objective.losses({"os": scores[:2]}, objective.tensor(nobody)) == {}
    # While it is trained, such a step moves nothing, and is no error.
    leaf = scores[:2].clone().requires_grad_()
    loss = objective.losses({"os": leaf}, objective.tensor(nobody))["os"]
    assert (loss.item(), torch.autograd.grad(loss, leaf)[0].abs().sum().item()) == (0.0, 0.0)


def test_discrete_loss_and_survival_by_hand() -> None:
    head = Survival(loss="discrete", edges=(2.0, 4.0, 9.0), times=(1.0, 4.0, 20.0), alpha=0.25)
    hazard = np.array([0.1, 0.5, 0.2])
    outputs = torch.logit(torch.tensor(np.tile(hazard, (4, 1))))
    target = torch.tensor([[2.0, 1.0], [3.0, 1.0], [9.0, 0.0], [30.0, 1.0]])
    expected = [-np.log(0.1), -np.log(0.9 * 0.5), -0.75 * np.log(0.9 * 0.5 * 0.8), -np.log(0.9 * 0.5 * 0.2)]
    np.testing.assert_allclose(head.row_losses(outputs, target, None), expected, rtol=1e-12)
    curve = head.probabilities(outputs).numpy()
    np.testing.assert_allclose(curve[0], [0.9, 0.45, 0.36])
    from histotl.learn.heads.base import TaskFacts

    answers = head.decode(curve, TaskFacts(counts=(1,)))
    np.testing.assert_allclose(answers[0], [-(0.9 + 0.45 + 0.36) / 3, 0.95, 0.45, 0.36])


def test_bins_hold_as_many_events_and_are_refused_without() -> None:
    rng = np.random.default_rng(0)
    target = np.column_stack([rng.exponential(10, 400) + 0.01, rng.random(400) < 0.7]).astype(float)
    head = Survival(loss="discrete", bins=5).learn(target)
    held = np.histogram(target[target[:, 1] > 0, 0], [0.0, *head.edges])[0]
    assert held.max() - held.min() <= 1
    assert len(head.times) == 3
    with pytest.raises(TableError, match="no row of train has the event"):
        Survival().learn(np.array([[1.0, 0.0], [2.0, 0.0]]))


def test_the_baseline_of_equal_scores_is_nelson_and_aalen() -> None:
    at = np.array([0.5, 1.0, 6.0, 9.0])
    np.testing.assert_allclose(
        baseline_hazard(np.zeros(6), TIME, EVENT, at), [0, 1 / 6, 1 / 6 + 2 / 4, 1 / 6 + 2 / 4 + 1], rtol=1e-12
    )
    # A constant in all scores goes into the baseline.
    np.testing.assert_allclose(
        np.exp(1.3) * baseline_hazard(X + 1.3, TIME, EVENT, at), baseline_hazard(X, TIME, EVENT, at), rtol=1e-12
    )


def test_concordance_is_the_loop_over_pairs_with_weights_as_repeats() -> None:
    rng = np.random.default_rng(2)
    n = 60
    risk, time = rng.integers(0, 9, n).astype(float), rng.integers(1, 12, n).astype(float)
    event, weights = rng.random(n) < 0.6, rng.integers(0, 3, (n, 4)).astype(float)
    importance = censoring_importance(time, event)
    for given in (None, importance):
        for b in range(4):
            right = total = 0.0
            for i in range(n):
                for j in range(n):
                    if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                        mass = weights[i, b] * weights[j, b] * (1.0 if given is None else given[i])
                        total += mass
                        right += mass * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
            found = concordance(risk, time, event, weights, importance=given)
            assert found[b] == pytest.approx(right / total, rel=1e-12)
    repeated = np.repeat(np.arange(n), weights[:, 0].astype(int))
    assert concordance(risk[repeated], time[repeated], event[repeated]) == pytest.approx(
        float(concordance(risk, time, event, weights)[0])
    )
    assert np.isnan(concordance(risk, time, np.zeros(n, dtype=bool)))


def test_kaplan_meier_by_hand() -> None:
    at, share = kaplan_meier(TIME, EVENT > 0)
    np.testing.assert_array_equal(at, [1, 6, 8, 9])
    np.testing.assert_allclose(share, [5 / 6, 5 / 12, 5 / 12, 0.0])
