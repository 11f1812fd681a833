"""Metrics of classes and values as plain functions of sample weights.

Every function takes weights of shape (n,) or (n, b): one weight a row, or one column a resample. Counting a row twice
and giving it the weight 2 are the same thing, so one vectorised call answers for all resamples of a bootstrap.

Classes that a set (or a resample) does not hold have no recall; means over classes leave them out. A metric that is
undefined on a set is NaN there, never 0.

Rankings (AUROC, Spearman …) are in :mod:`histotl.evaluate.ranking`, calibration in :mod:`histotl.evaluate.calibration`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def confusion_matrix(truth: Ints, predicted: Ints, n_classes: int, weights: Floats | None = None) -> Floats:
    """Weighted counts; rows are the truth, columns the prediction.

    Args:
        truth: Class index of each row (n,).
        predicted: Predicted class index (n,).
        n_classes: k.
        weights: (n,) or (n, b); None counts every row once.

    Returns:
        (k, k), or (b, k, k) for weights of shape (n, b).
    """
    cell = truth * n_classes + predicted
    if weights is None or weights.ndim == 1:
        flat = np.bincount(cell, weights, minlength=n_classes**2).astype(np.float64)
        return flat.reshape(n_classes, n_classes)
    counts: Floats = np.zeros((n_classes**2, weights.shape[1]))
    np.add.at(counts, cell, weights)
    return np.asarray(counts.T.reshape(-1, n_classes, n_classes))


def recalls(confusion: Floats) -> Floats:
    """Share of each class that was found: (…, k, k) to (…, k); NaN for a class without rows."""
    return divide(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1))


def precisions(confusion: Floats) -> Floats:
    """Share of each predicted class that is right: (…, k, k) to (…, k); NaN for a class never predicted."""
    return divide(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-2))


def accuracy(confusion: Floats) -> Floats:
    """Share of rows with the right class: (…, k, k) to (…)."""
    return divide(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def balanced_accuracy(confusion: Floats) -> Floats:
    """Mean recall over the classes that have rows: (…, k, k) to (…). Chance is 1/k."""
    return nan_mean(recalls(confusion))


def f1_macro(confusion: Floats) -> Floats:
    """Mean over classes of F1 = 2 tp / (2 tp + fp + fn): (…, k, k) to (…).

    A class that is neither there nor predicted is left out; one that is predicted but not there counts as 0.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return nan_mean(divide(2 * hits, confusion.sum(axis=-1) + confusion.sum(axis=-2)))


def quadratic_kappa(confusion: Floats) -> Floats:
    """Cohen's kappa with weights (i - j)², for ordered classes: (…, k, k) to (…).

    1 is perfect, 0 is what the two marginals give by chance; NaN when truth and prediction are one same class.
    """
    grade = np.arange(confusion.shape[-1], dtype=np.float64)
    penalty = (grade[:, None] - grade) ** 2
    total = confusion.sum(axis=(-2, -1))
    by_chance = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    expected = divide((penalty * by_chance).sum(axis=(-2, -1)), total)
    return 1 - divide((penalty * confusion).sum(axis=(-2, -1)), expected)


def grade_error(confusion: Floats) -> Floats:
    """Mean absolute distance between true and predicted grade, in grades: (…, k, k) to (…)."""
    grade = np.arange(confusion.shape[-1])
    distance = np.abs(grade[:, None] - grade)
    return divide((distance * confusion).sum(axis=(-2, -1)), confusion.sum(axis=(-2, -1)))


def mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Weighted mean of one value a row: MAE from :func:`absolute_errors`, Brier and NLL from their rows.

    Args:
        values: (n,).
        weights: (n,) or (n, b).

    Returns:
        A scalar, or (b,).
    """
    if weights is None:
        return np.asarray(values.mean())
    return divide(values @ weights, weights.sum(axis=0))


def absolute_errors(truth: Floats, predicted: Floats) -> Floats:
    """|truth - prediction| of each row (n,)."""
    return np.asarray(np.abs(truth - predicted))


def brier_rows(truth: Ints, probability: Floats) -> Floats:
    """Brier score of each row (n,); lower is better.

    For two classes (p - y)² of the positive class, 0 to 1; for more the sum over classes, 0 to 2, as Brier (1950) has
    it. scikit-learn's ``brier_score_loss`` has the same convention.
    """
    k = probability.shape[1]
    squared: Floats = ((probability - np.eye(k)[truth]) ** 2).sum(axis=1)
    return squared / 2 if k == 2 else squared


def nll_rows(truth: Ints, probability: Floats) -> Floats:
    """Negative log likelihood of each row in nats (n,); probabilities below 2.2e-16 count as that."""
    kept = np.clip(probability[np.arange(len(truth)), truth], np.finfo(np.float64).eps, 1.0)
    return -np.log(kept)


def soft_brier_rows(shares: Floats, probability: Floats) -> Floats:
    """Squared distance of the probabilities from the shares of votes, summed over classes (n,); 0 to 2."""
    return np.asarray(((probability - shares) ** 2).sum(axis=1))


def soft_nll_rows(shares: Floats, probability: Floats) -> Floats:
    """Cross-entropy of the shares of votes in nats (n,); least where the probabilities are the shares."""
    return np.asarray(-(shares * np.log(np.maximum(probability, np.finfo(np.float64).eps))).sum(axis=1))


def r2(truth: Floats, predicted: Floats, weights: Floats | None = None) -> Floats:
    """Coefficient of determination: 1 - squared error / squared deviation from the set's own mean.

    Args:
        truth: (n,).
        predicted: (n,).
        weights: (n,) or (n, b).

    Returns:
        A scalar, or (b,); NaN when the truth does not vary.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    centred = truth - truth.mean()  # against cancellation in the sum of squares
    square, shift = mean(centred**2, weights), mean(centred, weights)
    spread = square - shift**2
    # In a resample of one single value the difference is 0 up to rounding, and the quotient would be noise.
    spread = np.where(spread > 1e-12 * square, spread, np.nan)
    return np.asarray(1 - divide(mean((truth - predicted) ** 2, weights), spread))


def nan_mean(values: Floats) -> Floats:
    """Mean over the last axis without the NaN; NaN where all are."""
    there = ~np.isnan(values)
    return divide(np.where(there, values, 0.0).sum(axis=-1), there.sum(axis=-1))


def divide(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """Quotient with NaN, not a warning, where the divisor is 0 or NaN."""
    numerator, divisor = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    good = divisor > 0
    return np.where(good, numerator / np.where(good, divisor, 1.0), np.nan)
