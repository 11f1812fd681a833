"""Every metric against scikit-learn, plain and weighted, to 1e-12."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from histotl.evaluate import metrics

CLASS_METRICS = {
    "accuracy": (metrics.accuracy, lambda t, p, w: oracle.accuracy_score(t, p, sample_weight=w)),
    "balanced_accuracy": (
        metrics.balanced_accuracy,
        lambda t, p, w: oracle.balanced_accuracy_score(t, p, sample_weight=w),
    ),
    "f1_macro": (metrics.f1_macro, lambda t, p, w: oracle.f1_score(t, p, average="macro", sample_weight=w)),
    "quadratic_kappa": (
        metrics.quadratic_kappa,
        lambda t, p, w: oracle.cohen_kappa_score(t, p, weights="quadratic", sample_weight=w),
    ),
    "grade_error": (metrics.grade_error, lambda t, p, w: oracle.mean_absolute_error(t, p, sample_weight=w)),
}


def _classes(seed: int, n: int = 83, k: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    probability = rng.dirichlet(np.ones(k), n)
    predicted = np.where(rng.random(n) < 0.5, truth, probability.argmax(axis=1))
    return truth, predicted, probability, rng.integers(0, 4, n).astype(np.float64)


@pytest.mark.parametrize("name", CLASS_METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_class_metrics_equal_scikit_learn(name: str, seed: int) -> None:
    ours, theirs = CLASS_METRICS[name]
    truth, predicted, _, weights = _classes(seed)
    plain = ours(metrics.confusion_matrix(truth, predicted, 4))
    weighted = ours(metrics.confusion_matrix(truth, predicted, 4, weights))
    assert plain == pytest.approx(theirs(truth, predicted, None), abs=1e-12)
    assert weighted == pytest.approx(theirs(truth, predicted, weights), abs=1e-12)


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_columns_of_weights_are_separate_answers(name: str) -> None:
    ours, _ = CLASS_METRICS[name]
    truth, predicted, _, weights = _classes(5)
    columns = np.stack([weights, np.ones(len(weights)), weights[::-1]], axis=1)
    together = ours(metrics.confusion_matrix(truth, predicted, 4, columns))
    alone = [ours(metrics.confusion_matrix(truth, predicted, 4, columns[:, b])) for b in range(3)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_confusion_matrix_and_recalls_equal_scikit_learn() -> None:
    truth, predicted, _, weights = _classes(7)
    ours = metrics.confusion_matrix(truth, predicted, 4, weights)
    np.testing.assert_array_equal(ours, oracle.confusion_matrix(truth, predicted, sample_weight=weights))
    kwargs = {"average": None, "sample_weight": weights}
    np.testing.assert_allclose(metrics.recalls(ours), oracle.recall_score(truth, predicted, **kwargs), atol=1e-12)
    np.testing.assert_allclose(metrics.precisions(ours), oracle.precision_score(truth, predicted, **kwargs), atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_brier_and_nll_equal_scikit_learn(k: int) -> None:
    truth, _, probability, weights = _classes(11, k=k)
    named = {"labels": np.arange(k), "sample_weight": weights}
    stated = probability[:, 1] if k == 2 else probability
    brier = oracle.brier_score_loss(truth, stated, **named)
    assert metrics.mean(metrics.brier_rows(truth, probability), weights) == pytest.approx(brier, abs=1e-12)
    nll = oracle.log_loss(truth, probability, **named)
    assert metrics.mean(metrics.nll_rows(truth, probability), weights) == pytest.approx(nll, abs=1e-12)


def test_nll_of_an_impossible_truth_is_large_and_finite() -> None:
    assert metrics.nll_rows(np.array([1]), np.array([[1.0, 0.0]]))[0] == pytest.approx(36.04, abs=0.01)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_value_metrics_equal_scikit_learn(offset: float) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=70) + offset
    predicted = truth + rng.normal(size=70)
    weights = rng.integers(0, 3, 70).astype(np.float64)
    for w in (None, weights):
        expected = oracle.r2_score(truth, predicted, sample_weight=w)
        assert metrics.r2(truth, predicted, w) == pytest.approx(expected, abs=1e-12 if offset == 0 else 1e-9)
        expected = oracle.mean_absolute_error(truth, predicted, sample_weight=w)
        assert metrics.mean(metrics.absolute_errors(truth, predicted), w) == pytest.approx(expected, abs=1e-12)


def test_undefined_is_nan_not_zero() -> None:
    one_class = metrics.confusion_matrix(np.zeros(5, int), np.zeros(5, int), 3)
    assert np.isnan(metrics.quadratic_kappa(one_class))
    np.testing.assert_array_equal(metrics.recalls(one_class), [1.0, np.nan, np.nan])
    assert metrics.balanced_accuracy(one_class) == 1.0
    assert np.isnan(metrics.accuracy(np.zeros((2, 2))))
    assert np.isnan(metrics.r2(np.full(4, 0.1), np.zeros(4)))
    one_value = np.array([[0.0], [0.0], [3.0]])
    assert np.isnan(metrics.r2(np.array([0.1, 0.7, 0.3]), np.zeros(3), one_value)[0])


@given(st.data())
def test_a_weight_of_two_is_the_row_twice(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    truth = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    predicted = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    weighted = metrics.confusion_matrix(truth, predicted, 3, times.astype(np.float64))
    repeated = metrics.confusion_matrix(np.repeat(truth, times), np.repeat(predicted, times), 3)
    np.testing.assert_array_equal(weighted, repeated)
    for ours, _ in CLASS_METRICS.values():
        np.testing.assert_array_equal(ours(weighted), ours(repeated))
