"""Conformal sets: coverage on exchangeable synthetic patients, shapes of the sets, and small cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from histotl.core.errors import SpecError, UsageError
from histotl.learn.conformal import (
    Conformal,
    chances,
    class_scores,
    fit_interval,
    fit_sets,
    grade_scores,
    interval_scores,
    patient_bound,
)
from histotl.learn.decision_rules import parse_sets
from histotl.learn.decisions import Decision, decide, decision_from_dict, fit_decisions, set_columns
from histotl.learn.task import Task

K = 5
REPEATS = 300


def labelled(rng: np.random.Generator, patients: int, *, rows: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities that are wrong by a patient's own shift, true classes, and patients of 1 to ``rows`` cases."""
    owner = np.repeat(np.arange(patients), rng.integers(1, rows + 1, patients))
    logits = rng.normal(size=(len(owner), K)) * 1.2
    truth = (logits + rng.normal(size=(patients, K))[owner] + rng.gumbel(size=logits.shape)).argmax(axis=1)
    p = np.exp(logits * 1.5)
    return p / p.sum(axis=1, keepdims=True), truth, owner


@pytest.mark.parametrize("kind", ["classes", "grades"])
@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_sets_cover_a_random_case_of_a_new_patient(kind: str, penalty: float) -> None:
    rng, coverage, hits, sizes = np.random.default_rng(0), 0.85, [], []
    for repeat in range(REPEATS):
        p, truth, owner = labelled(rng, 80)
        answer, chance = p.argmax(axis=1), rng.random(len(p))
        patients = [f"P{i}" for i in owner]
        found = fit_sets(kind, p, answer, truth, chance=chance, patients=patients, coverage=coverage, penalty=penalty)
        q, new, owners = labelled(rng, 60)
        inside = found.members(q, q.argmax(axis=1), chances([f"{repeat}/{i}" for i in range(len(q))], "t"))
        # A random case of each patient, as the theorem has it: the mean over patients of their own shares.
        covered = inside[np.arange(len(new)), new]
        hits += [covered[owners == patient].mean() for patient in range(60)]
        sizes.append(inside.sum(axis=1).mean())
    assert np.mean(hits) == pytest.approx(coverage, abs=0.02)
    assert 1 <= np.mean(sizes) < K


def test_sets_that_count_cases_alike_would_be_wrong() -> None:
    """Patients with many cases are the hard ones here: without their patients, cases promise too much."""
    rng, plain, fair = np.random.default_rng(1), [], []
    for _ in range(REPEATS):
        sizes = np.where(np.arange(60) < 30, 1, 12)
        owner = np.repeat(np.arange(60), sizes)
        scores = rng.exponential(size=60)[owner] * np.where(sizes[owner] == 1, 3.0, 1.0)
        fresh = rng.exponential(size=400) * np.where(np.arange(400) < 200, 3.0, 1.0)
        for bounds, patients in ((plain, np.arange(len(owner))), (fair, owner)):
            bound = patient_bound(scores, [str(i) for i in patients], 0.8)
            bounds.append((fresh <= (math.inf if bound is None else bound)).mean())
    assert np.mean(fair) == pytest.approx(0.8, abs=0.02)
    assert np.mean(plain) < 0.76


@pytest.mark.parametrize("quantiles", [False, True])
def test_intervals_cover_and_quantiles_follow_the_noise(quantiles: bool) -> None:
    rng, hits, widths = np.random.default_rng(2), [], []

    def make(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = rng.uniform(0.2, 2, n)
        return x, x, x + rng.normal(size=n) * x

    for _ in range(REPEATS):
        x, middle, y = make(120)
        spread = x if quantiles else np.zeros(120)
        found = fit_interval(middle - spread, middle + spread, y, patients=[str(i) for i in range(120)], coverage=0.9)
        x, middle, y = make(100)
        spread = x if quantiles else np.zeros(100)
        low, high = found.interval(middle - spread, middle + spread)
        assert (low <= high).all()
        hits.append(((low <= y) & (y <= high)).mean())
        widths.append((high - low)[x > 1.5].mean() / (high - low)[x < 0.5].mean())
    assert np.mean(hits) == pytest.approx(0.9, abs=0.02)
    assert np.mean(widths) == pytest.approx(1.0) if not quantiles else np.mean(widths) > 1.8


def test_generous_quantiles_are_drawn_together_but_not_past_each_other() -> None:
    y = np.linspace(-1, 1, 40)
    found = fit_interval(np.full(40, -5.0), np.full(40, 5.0), y, patients=[str(i) for i in range(40)], coverage=0.8)
    assert found.bound is not None
    assert found.bound < 0
    low, high = found.interval(np.array([-5.0, -1.0]), np.array([5.0, 1.0]))
    assert high[0] - low[0] < 3
    assert low[1] == high[1] == 0
    assert interval_scores(np.zeros(2), np.zeros(2), np.array([-2.0, 3.0]), 2.0).tolist() == [1.0, 1.5]


def test_sets_grow_with_coverage_and_hold_the_answer() -> None:
    rng = np.random.default_rng(3)
    p, truth, owner = labelled(rng, 200)
    patients, chance = [str(i) for i in owner], rng.random(len(p))
    for kind in ("classes", "grades"):
        smaller = np.zeros_like(p, dtype=bool)
        for coverage in (0.05, 0.5, 0.8, 0.9, 0.99):
            answer = decide(Task(name="g", kind="ordinal", classes=tuple("abcde")), p)
            found = fit_sets(kind, p, answer, truth, chance=chance, patients=patients, coverage=coverage)
            inside = found.members(p, answer, chance)
            assert (smaller <= inside).all()
            assert inside[np.arange(len(p)), answer].all()
            smaller = inside


def test_grades_are_runs_without_gaps() -> None:
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(K, 0.3), 500)
    answer = rng.integers(0, K, 500)
    for bound in (0.0, 0.3, 0.7, 0.95):
        found = Conformal(kind="grades", coverage=0.9, bound=bound, patients=9, rows=9)
        inside = found.members(p, answer, rng.random(500)).astype(int)
        changes = np.abs(np.diff(np.pad(inside, ((0, 0), (1, 1))), axis=1)).sum(axis=1)
        assert (changes == 2).all()


def test_scores_by_hand() -> None:
    p, half = np.array([[0.2, 0.5, 0.3]]), np.array([0.5])
    np.testing.assert_allclose(class_scores(p, half), [[0.9, 0.25, 0.65]])
    np.testing.assert_allclose(class_scores(p, half, penalty=0.1, free=1), [[1.1, 0.25, 0.75]])
    np.testing.assert_allclose(grade_scores(p, np.array([0]), half), [[0.1, 0.45, 0.85]])
    np.testing.assert_allclose(grade_scores(p, np.array([1]), half), [[0.9, 0.25, 0.65]])
    names = ["a", "a", "b", "c"]
    # Weights 1/8, 1/8, 1/4, 1/4, and 1/4 at infinity.
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    assert patient_bound(scores, names, 0.25) == 2
    assert patient_bound(scores, names, 0.5) == 3
    assert patient_bound(scores, names, 0.75) == 4
    assert patient_bound(scores, names, 0.76) is None
    assert patient_bound(scores[:0], [], 0.5) is None


def test_the_same_case_always_gets_the_same_set() -> None:
    found = chances([f"S{i}" for i in range(4000)], "label")
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert ((found >= 0) & (found < 1)).all()
    np.testing.assert_array_equal(found[:3], chances(["S0", "S1", "S2"], "label"))
    assert chances(["S0"], "other")[0] != found[0]


def test_decisions_are_plain_values_and_say_when_patients_are_too_few() -> None:
    tasks = (
        Task(name="b", kind="binary", classes=("n", "y")),
        Task(name="g", kind="ordinal", classes=("a", "b", "c")),
        Task(name="s", kind="regression"),
    )
    rng, n = np.random.default_rng(5), 40
    up = rng.random(n)
    answers = {"b": np.stack([1 - up, up], axis=1), "g": rng.dirichlet(np.ones(3), n), "s": rng.normal(size=(n, 1))}
    targets = {"b": (up > 0.3).astype(float), "g": rng.integers(0, 3, n).astype(float), "s": rng.normal(size=n)}
    targets["g"][:10] = np.nan
    ids = [f"S{i}" for i in range(n)]
    settings = {"threshold": "youden", "coverage": 0.9, "sets": "raps(penalty=0.1, free=1)"}
    found, notes = fit_decisions(tasks, answers, targets, ids=ids, patients=ids, **settings)
    assert notes == {}
    assert {name: decision_from_dict(decision.to_dict()) for name, decision in found.items()} == found
    assert found["b"].threshold is not None
    assert found["b"].threshold.value == pytest.approx(0.3, abs=0.05)
    assert found["g"].conformal is not None
    assert (found["g"].conformal.rows, found["g"].conformal.kind) == (30, "grades")
    columns = set_columns(tasks[1], answers["g"], found["g"], ids)
    assert all(text in ("a", "b", "c", "a;b", "b;c", "a;b;c") for text in columns["g:set"])
    assert set(set_columns(tasks[2], answers["s"], found["s"], ids)) == {"s:low", "s:high"}
    few, notes = fit_decisions(tasks, answers, targets, ids=ids, patients=[str(i % 4) for i in range(n)], **settings)
    assert few["g"].conformal is not None
    assert few["g"].conformal.bound is None
    assert set(set_columns(tasks[1], answers["g"], few["g"], ids)["g:set"]) == {"a;b;c"}
    assert "4 validation patients are too few for 90% coverage" in notes["g"]
    none, _ = fit_decisions(tasks, answers, targets, ids=ids, patients=ids, threshold="none", coverage=0, sets="aps")
    assert none["b"] == Decision()
    assert set_columns(tasks[0], answers["b"], none["b"], ids) == {}


def test_texts_of_sets() -> None:
    assert parse_sets("aps") == (0.0, 1)
    assert parse_sets("raps") == (0.01, 2)
    assert parse_sets("raps(penalty=0.2, free=0)") == (0.2, 0)
    for text in ("lac", "aps(penalty=1)", "raps(free=-1)", "raps(other=1)"):
        with pytest.raises(UsageError):
            parse_sets(text)
    with pytest.raises(SpecError):
        parse_sets("raps(")


@pytest.mark.parametrize(("right", "wanted"), [(0.8, 0.9), (0.95, 0.95)])
def test_a_confident_model_gets_no_larger_sets_than_needed(right: float, wanted: float) -> None:
    """Right answers that chance would leave out must not be paid for twice."""
    rng, hits, sizes = np.random.default_rng(6), [], []

    def make(n: int) -> tuple[np.ndarray, np.ndarray]:
        p = rng.dirichlet(np.full(K, 0.5), n) * 0.05 + 0.95 * np.eye(K)[rng.integers(0, K, n)]
        other = (p.argmax(axis=1) + rng.integers(1, K, n)) % K
        return p, np.where(rng.random(n) < right, p.argmax(axis=1), other)

    for _ in range(REPEATS):
        p, truth = make(150)
        patients = [str(i) for i in range(150)]
        found = fit_sets("classes", p, p.argmax(axis=1), truth, chance=rng.random(150), patients=patients, coverage=0.9)
        p, truth = make(150)
        inside = found.members(p, p.argmax(axis=1), rng.random(150))
        hits.append(inside[np.arange(150), truth].mean())
        sizes.append(inside.sum(axis=1).mean())
    assert np.mean(hits) == pytest.approx(wanted, abs=0.02)
    assert np.mean(sizes) < (3.5 if right < 0.9 else 1.1)
