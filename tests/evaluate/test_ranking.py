"""Rankings against scikit-learn, scipy and the definitions, with ties, plain and weighted, to 1e-12."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from histotl.evaluate import ranking


def _scores(seed: int, n: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    score = np.round(rng.normal(size=n) + positive, 1)  # one decimal: many ties
    return score, positive, rng.integers(0, 4, n).astype(np.float64)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_and_average_precision_equal_scikit_learn(seed: int) -> None:
    score, positive, weights = _scores(seed)
    for w in (None, weights):
        kept = np.ones(len(score), bool) if w is None else w > 0
        sample_weight = None if w is None else w[kept]
        expected = oracle.roc_auc_score(positive[kept], score[kept], sample_weight=sample_weight)
        assert ranking.auroc(score, positive, w) == pytest.approx(expected, abs=1e-12)
        expected = oracle.average_precision_score(positive[kept], score[kept], sample_weight=sample_weight)
        assert ranking.average_precision(score, positive, w) == pytest.approx(expected, abs=1e-12)


def test_macro_auroc_equals_scikit_learn_and_leaves_out_absent_classes() -> None:
    rng = np.random.default_rng(0)
    truth, probability = rng.integers(0, 4, 60), rng.dirichlet(np.ones(4), 60)
    expected = oracle.roc_auc_score(truth, probability, multi_class="ovr", average="macro")
    assert ranking.auroc_macro(probability, truth) == pytest.approx(expected, abs=1e-12)
    without = (truth != 2).astype(np.float64)
    parts = [oracle.roc_auc_score(truth == c, probability[:, c], sample_weight=without) for c in (0, 1, 3)]
    assert ranking.auroc_macro(probability, truth, without) == pytest.approx(np.mean(parts), abs=1e-12)


@given(st.data())
def test_spearman_of_weights_is_scipy_on_repeated_rows(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 15))
    few = st.lists(st.integers(0, 5), min_size=n, max_size=n)
    a, b = (np.array(data.draw(few), dtype=np.float64) for _ in range(2))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    ours = ranking.spearman(a, b, times.astype(np.float64))
    a, b = np.repeat(a, times), np.repeat(b, times)
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@given(st.data())
def test_columns_of_weights_are_separate_answers(data: st.DataObject) -> None:
    score, positive, _ = _scores(data.draw(st.integers(0, 99)), n=20)
    columns = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 3, (20, 4)).astype(np.float64)
    for metric in (
        ranking.auroc,
        ranking.average_precision,
        ranking.augrc,
        ranking.id_flagged_at_95_ood_recall,
        ranking.ood_missed_at_95_id_kept,
    ):
        together = metric(score, positive, columns)
        alone = [metric(score, positive, columns[:, b]) for b in range(4)]
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)
    together = ranking.spearman(score, positive.astype(float), columns)
    alone = [ranking.spearman(score, positive.astype(float), columns[:, b]) for b in range(4)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


@given(st.integers(0, 10_000))
def test_augrc_identity(seed: int) -> None:
    """AUGRC = (1 - AUROC_f) acc (1 - acc) + (1 - acc)² / 2, for 0/1 errors."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(40) < 0.3
    failure = np.round(rng.normal(size=40) + wrong, 1)
    weights = rng.integers(0, 3, 40).astype(np.float64)
    right = 1 - np.average(wrong, weights=weights)
    auroc = ranking.auroc(failure, wrong, weights)
    separable = 0.0 if np.isnan(auroc) else (1 - auroc) * right * (1 - right)
    assert ranking.augrc(failure, wrong, weights) == pytest.approx(separable + 0.5 * (1 - right) ** 2, abs=1e-12)


def test_risk_coverage_ends_at_the_error_rate() -> None:
    failure, wrong = np.array([0.1, 0.2, 0.2, 0.9]), np.array([False, True, False, True])
    coverage, risk = ranking.risk_coverage(failure, wrong)
    np.testing.assert_allclose(coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0.0, 1 / 3, 0.5])


@given(st.integers(0, 10_000))
def test_both_fpr95_equal_their_definitions(seed: int) -> None:
    """Over all thresholds, in whole numbers: 20 of 19 is 95 %."""
    score, is_ood, _ = _scores(seed, n=int(np.random.default_rng(seed).integers(4, 60)))
    if is_ood.all() or not is_ood.any():
        return
    known, foreign = score[~is_ood], score[is_ood]
    flags = max(t for t in score if 20 * (foreign >= t).sum() >= 19 * len(foreign))
    keeps = min(t for t in score if 20 * (known <= t).sum() >= 19 * len(known))
    assert ranking.id_flagged_at_95_ood_recall(score, is_ood) == pytest.approx((known >= flags).mean(), abs=1e-12)
    assert ranking.ood_missed_at_95_id_kept(score, is_ood) == pytest.approx((foreign <= keeps).mean(), abs=1e-12)


def test_id_flagged_is_what_openood_computes() -> None:
    """OpenOOD: FPR at the first ROC point with a TPR of at least 0.95."""
    score, is_ood, _ = _scores(1, n=200)
    fpr, tpr, _ = oracle.roc_curve(is_ood, score, drop_intermediate=False)
    assert ranking.id_flagged_at_95_ood_recall(score, is_ood) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


def test_one_kind_alone_is_nan() -> None:
    score, nobody = np.array([0.1, 0.5]), np.zeros(2, bool)
    for metric in (ranking.auroc, ranking.average_precision, ranking.id_flagged_at_95_ood_recall):
        assert np.isnan(metric(score, nobody))
    assert np.isnan(ranking.ood_missed_at_95_id_kept(score, nobody))
    assert np.isnan(ranking.auroc(score, ~nobody))
