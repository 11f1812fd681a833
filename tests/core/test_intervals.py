"""The bootstrap through weights equals a plain loop of scikit-learn over the same resampled patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from histotl.core.errors import UsageError
from histotl.core.intervals import Resamples, estimate
from histotl.evaluate import metrics, ranking

B = 40


@pytest.fixture
def cohort() -> dict[str, np.ndarray]:
    """120 rows of 30 patients of unequal size, three classes."""
    rng = np.random.default_rng(0)
    unit = np.unique(rng.integers(0, 30, 120), return_inverse=True)[1]
    truth = rng.integers(0, 3, 120)
    probability = rng.dirichlet(np.ones(3), 120) + 0.5 * np.eye(3)[truth]
    probability /= probability.sum(axis=1, keepdims=True)
    return {"unit": unit, "truth": truth, "probability": probability, "predicted": probability.argmax(axis=1)}


def _rows_of_draw(draws: Resamples, b: int) -> np.ndarray:
    """Row indices of one resample, with every drawn patient's rows as often as the patient was drawn."""
    rows = [np.tile(np.flatnonzero(draws.unit == p), draws.weights[p, b]) for p in range(draws.n_units)]
    return np.concatenate(rows).astype(int)


def test_confusion_metrics_equal_a_loop(cohort: dict[str, np.ndarray]) -> None:
    draws = Resamples.draw(cohort["unit"], B, seed=1)
    confusion = draws.confusion(cohort["truth"], cohort["predicted"], 3)
    for b in range(1 + B):
        rows = _rows_of_draw(draws, b)
        truth, predicted = cohort["truth"][rows], cohort["predicted"][rows]
        pairs = [
            (metrics.balanced_accuracy, oracle.balanced_accuracy_score(truth, predicted)),
            (metrics.f1_macro, oracle.f1_score(truth, predicted, average="macro")),
            (metrics.quadratic_kappa, oracle.cohen_kappa_score(truth, predicted, weights="quadratic")),
        ]
        for ours, expected in pairs:
            assert ours(confusion[b]) == pytest.approx(expected, abs=1e-12)


def test_rankings_and_means_equal_a_loop(cohort: dict[str, np.ndarray]) -> None:
    draws = Resamples.draw(cohort["unit"], B, seed=2)
    truth, probability = cohort["truth"], cohort["probability"]
    macro = draws.rows(lambda w: ranking.auroc_macro(probability, truth, w))
    binary = draws.rows(lambda w: ranking.auroc(probability[:, 1], truth == 1, w))
    nll = draws.mean(metrics.nll_rows(truth, probability))
    for b in range(1 + B):
        rows = _rows_of_draw(draws, b)
        expected = oracle.roc_auc_score(truth[rows], probability[rows], multi_class="ovr")
        assert macro[b] == pytest.approx(expected, abs=1e-12)
        assert binary[b] == pytest.approx(oracle.roc_auc_score(truth[rows] == 1, probability[rows, 1]), abs=1e-12)
        assert nll[b] == pytest.approx(oracle.log_loss(truth[rows], probability[rows]), abs=1e-12)


def test_blocks_of_draws_do_not_change_the_answer(
    cohort: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Resamples.draw(cohort["unit"], B, seed=3)
    score, positive = cohort["probability"][:, 0], cohort["truth"] == 0
    whole = draws.rows(lambda w: ranking.auroc(score, positive, w))
    monkeypatch.setattr("histotl.core.intervals._BLOCK", 300)
    np.testing.assert_array_equal(whole, draws.rows(lambda w: ranking.auroc(score, positive, w)))


def test_draw_zero_is_the_test_set_and_every_draw_has_all_patients(cohort: dict[str, np.ndarray]) -> None:
    draws = Resamples.draw(cohort["unit"], B, seed=4)
    assert (draws.weights[:, 0] == 1).all()
    assert (draws.weights.sum(axis=0) == draws.n_units).all()
    again = Resamples.draw(cohort["unit"], B, seed=4)
    np.testing.assert_array_equal(draws.weights, again.weights)
    assert (draws.weights != Resamples.draw(cohort["unit"], B, seed=5).weights).any()


def test_intervals_of_patients_cover_and_intervals_of_rows_do_not() -> None:
    """Rows of one patient are alike; a percentile interval over 100 patients covers the truth about 93 times in 100."""
    rng, unit = np.random.default_rng(0), np.repeat(np.arange(100), 3)
    by_patient, by_row = 0, 0
    for study in range(200):
        values = rng.normal(size=100)[unit] + rng.normal(scale=0.1, size=300)
        found = estimate(Resamples.draw(unit, 300, seed=study).mean(values))
        by_patient += found.low <= 0 <= found.high
        found = estimate(Resamples.draw(np.arange(300), 300, seed=study).mean(values))
        by_row += found.low <= 0 <= found.high
    assert 0.89 <= by_patient / 200 <= 0.98
    assert by_row / 200 <= 0.82


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    unit, positive = np.arange(12), np.arange(12) == 3
    score = np.linspace(0, 1, 12)
    draws = Resamples.draw(unit, 400, seed=0)
    found = estimate(draws.rows(lambda w: ranking.auroc(score, positive, w)))
    assert found.resamples == int(((draws.weights[3] > 0) & (draws.weights[3] < 12))[1:].sum())
    assert 200 < found.resamples < 300
    assert found.low <= found.value <= found.high


def test_no_interval_when_most_resamples_are_undefined() -> None:
    found = estimate(np.array([0.7, 0.6, np.nan, np.nan, np.nan]))
    assert (found.value, found.resamples) == (0.7, 1)
    assert np.isnan(found.low)
    assert found.to_dict() == {"value": 0.7, "low": None, "high": None, "resamples": 1}
    assert estimate(np.array([0.7])).to_dict()["low"] is None


def test_no_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="0 rows"):
        Resamples.draw(np.array([], dtype=np.int64), 10, seed=0)


@pytest.mark.parametrize(("n_units", "resamples"), [(1, 3), (7, 500), (1000, 300), (600_000, 2)])
def test_draws_are_those_of_one_draw_after_the_other(n_units: int, resamples: int) -> None:
    rng = np.random.default_rng(9)
    wanted = [np.bincount(rng.integers(0, n_units, n_units), minlength=n_units) for _ in range(resamples)]
    found = Resamples.draw(np.arange(n_units), resamples, seed=9).weights
    np.testing.assert_array_equal(found[:, 1:], np.stack(wanted, axis=1))


@pytest.mark.parametrize("exact", [1 << 24, 1])
def test_counts_are_exact_in_either_precision(exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histotl.core.intervals._EXACT", exact)
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(100), rng.integers(1, 900, 100))
    truth, predicted = (rng.integers(0, 2, len(unit)) for _ in range(2))
    draws = Resamples.draw(unit, 20, seed=3)
    found = draws.confusion(truth, predicted, 2)
    assert found.dtype == np.float64
    cells = [(truth == t) & (predicted == p) for t in (0, 1) for p in (0, 1)]
    counts = np.stack([np.bincount(unit[cell], minlength=100) for cell in cells])
    np.testing.assert_array_equal(found.reshape(21, 4).T, counts @ draws.weights.astype(np.int64))
