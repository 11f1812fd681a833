from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from histotl.core.errors import UsageError
from histotl.learn.columns import answer_columns
from histotl.learn.decision_rules import parse_rule
from histotl.learn.decisions import Decision, decide, decision_from_dict, fit_decisions, labels_of
from histotl.learn.task import Task
from histotl.learn.thresholds import choose_threshold


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.2
    return np.clip(rng.normal(0.25, 0.12, 300) + 0.25 * truth, 0.001, 0.999).round(2), truth


def test_youden_is_the_best_of_the_roc_curve(scored: tuple[np.ndarray, np.ndarray]) -> None:
    p, truth = scored
    found = choose_threshold(parse_rule("youden"), p, truth)
    fpr, tpr, _ = roc_curve(truth, p)
    assert found is not None
    assert found.sensitivity + found.specificity - 1 == pytest.approx((tpr - fpr).max())
    said = p >= found.value
    assert said[truth].mean() == pytest.approx(found.sensitivity)
    assert (~said[~truth]).mean() == pytest.approx(found.specificity)
    assert found.value != 0.5


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_sensitivity_is_reached_with_the_most_specificity(scored: tuple[np.ndarray, np.ndarray], wanted: float) -> None:
    p, truth = scored
    found = choose_threshold(parse_rule(f"sensitivity={wanted}"), p, truth)
    assert found is not None
    assert found.sensitivity >= wanted
    more = p >= np.min(p[p >= found.value]) + 0.005
    assert more[truth].mean() < wanted, "a higher threshold would do as well"


def test_cost_is_the_least_of_all(scored: tuple[np.ndarray, np.ndarray]) -> None:
    p, truth = scored

    def cost(threshold: float) -> float:
        said = p >= threshold
        return 4.0 * (truth & ~said).sum() + (said & ~truth).sum()

    found = choose_threshold(parse_rule("cost=4"), p, truth)
    assert found is not None
    assert cost(found.value) == min(cost(t) for t in np.arange(0, 1.001, 0.005))
    dear, cheap = (choose_threshold(parse_rule(f"cost={c}"), p, truth) for c in (50, 0.1))
    assert dear is not None
    assert cheap is not None
    assert dear.value < found.value < cheap.value


def test_too_few_cases_choose_nothing() -> None:
    assert choose_threshold(parse_rule("youden"), np.linspace(0, 1, 20), np.arange(20) < 4) is None


def test_the_answer_follows_the_threshold(scored: tuple[np.ndarray, np.ndarray]) -> None:
    task = Task(name="t", kind="binary", classes=("n", "y"))
    decision = Decision(threshold=choose_threshold(parse_rule("sensitivity=0.95"), *scored))
    p = np.stack([1 - scored[0], scored[0]], axis=1)
    assert decide(task, p, decision).sum() > decide(task, p).sum()


@pytest.mark.parametrize(
    "text", ["", "best", "youden=1", "sensitivity", "sensitivity=1.2", "cost=0", "cost=x", "cost=inf"]
)
def test_rules_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match="threshold is"):
        parse_rule(text)
    assert str(parse_rule("sensitivity = 0.95")) == "sensitivity=0.95"


def test_each_label_has_its_own_threshold(scored: tuple[np.ndarray, np.ndarray]) -> None:
    task = Task(name="found", kind="multilabel", columns=("a", "b", "c"))
    p = np.stack([scored[0], scored[0] / 2, scored[0]], axis=1)
    truth = np.stack([scored[1], scored[1], scored[1]], axis=1).astype(float)
    truth[::2, 0] = np.nan
    truth[5:, 2] = np.nan
    ids = [f"S{i}" for i in range(len(p))]
    settings = {"threshold": "youden", "coverage": 0.9, "sets": "aps"}
    found, notes = fit_decisions((task,), {"found": p}, {"found": truth}, ids=ids, patients=ids, **settings)
    decision = found["found"]
    assert decision_from_dict(decision.to_dict()) == decision
    first, second, third = decision.labels
    assert third is None
    assert notes["found"] == ("too few validation cases with or without c to choose a threshold by youden: one half")
    assert second is not None
    assert second == choose_threshold(parse_rule("youden"), p[:, 1], scored[1])
    assert first == choose_threshold(parse_rule("youden"), p[1::2, 0], scored[1][1::2])
    assert first is not None
    least = np.array([first.value, second.value, 0.5])
    np.testing.assert_array_equal(labels_of(p, decision), p >= least)
    np.testing.assert_array_equal(labels_of(p), p >= 0.5)
    columns = answer_columns((task,), {"found": p}, {}, decisions=found, ids=ids)
    wanted = [";".join(n for n, has in zip("abc", row, strict=True) if has) or "none" for row in p >= least]
    assert columns["found"].tolist() == wanted
