"""Metrics of order, as functions of sample weights: AUROC, average precision, Spearman, FPR95, risk and coverage.

Scores are sorted once; equal scores form one group (midranks), and all resamples are answered from weighted group sums.
Weights have shape (n,) or (n, b) as in :mod:`histotl.evaluate.metrics`; results are a scalar or (b,). Rows of weight 0
change nothing, so a resample gives the same number as a set that repeats its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.evaluate.metrics import Floats, Ints, divide, mean, nan_mean

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Rows sorted by a score, ascending, with equal scores together.

    Args:
        order: Row indices in ascending order of the score (n,).
        starts: Position in ``order`` where each group of equal scores begins (g,).
    """

    order: Ints
    starts: Ints

    @classmethod
    def of(cls, score: Floats) -> Groups:
        """Groups of ``score`` (n,); at least one row, no NaN."""
        order = np.argsort(score, kind="stable").astype(np.int64)
        ranked = score[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])).astype(np.int64)
        return cls(order=order, starts=starts)

    def sums(self, weights: Floats) -> Floats:
        """Sum of the weights of each group: (n,) to (g,), or (n, b) to (g, b)."""
        return np.add.reduceat(weights[self.order], self.starts, axis=0)

    def spread(self, values: Floats) -> Floats:
        """Give each row its group's value: (g, …) to (n, …), in the rows' own order."""
        sizes = np.diff(np.append(self.starts, len(self.order)))
        out = np.empty((len(self.order), *values.shape[1:]))
        out[self.order] = np.repeat(values, sizes, axis=0)
        return out


def auroc(score: Floats, positive: Mask, weights: Floats | None = None) -> Floats:
    """P(score of a positive > score of a negative) + P(equal) / 2.

    Args:
        score: Higher means more positive (n,).
        positive: (n,).
        weights: (n,) or (n, b).

    Returns:
        A scalar or (b,); NaN where one of the two kinds is missing.
    """
    up, down = _split(Groups.of(score), positive, weights)
    below = np.cumsum(down, axis=0) - down / 2
    return divide((up * below).sum(axis=0), up.sum(axis=0) * down.sum(axis=0))


def auroc_macro(probability: Floats, truth: Ints, weights: Floats | None = None) -> Floats:
    """Mean over classes of the one-versus-rest AUROC; classes without rows are left out.

    Args:
        probability: (n, k).
        truth: Class index (n,).
        weights: (n,) or (n, b).
    """
    each = [auroc(probability[:, c], truth == c, weights) for c in range(probability.shape[1])]
    return nan_mean(np.stack(each, axis=-1))


def average_precision(score: Floats, positive: Mask, weights: Floats | None = None) -> Floats:
    """Area under precision-recall as a step function (no trapezoid); chance is the share of positives."""
    up, down = _split(Groups.of(score), positive, weights)
    up, down = up[::-1], down[::-1]
    found = np.cumsum(up, axis=0)
    precision = np.nan_to_num(divide(found, found + np.cumsum(down, axis=0)))
    return divide((up * precision).sum(axis=0), up.sum(axis=0))


def spearman(truth: Floats, predicted: Floats, weights: Floats | None = None) -> Floats:
    """Pearson correlation of the midranks; NaN where either does not vary."""
    weights = np.ones(len(truth)) if weights is None else weights
    a, b = midranks(truth, weights), midranks(predicted, weights)
    total = weights.sum(axis=0)
    a = a - divide((weights * a).sum(axis=0), total)
    b = b - divide((weights * b).sum(axis=0), total)
    spread = (weights * a**2).sum(axis=0) * (weights * b**2).sum(axis=0)
    return divide((weights * a * b).sum(axis=0), np.sqrt(spread))


def midranks(values: Floats, weights: Floats) -> Floats:
    """Rank of each row among the repeated rows, ties at their middle: (n,) or (n, b)."""
    groups = Groups.of(values)
    mass = groups.sums(weights)
    return groups.spread(np.cumsum(mass, axis=0) - mass / 2)


def id_flagged_at_95_ood_recall(score: Floats, is_ood: Mask, weights: Floats | None = None) -> Floats:
    """Share of in-distribution rows flagged by the highest threshold that flags at least 95 % of the OOD rows.

    "FPR95" with OOD as the positive kind, as OpenOOD and pytorch-ood compute it.

    Args:
        score: Higher means more OOD (n,).
        is_ood: (n,).
        weights: (n,) or (n, b).
    """
    foreign, known = _split(Groups.of(score), is_ood, weights)
    return _share_at_95(np.cumsum(foreign[::-1], axis=0), np.cumsum(known[::-1], axis=0))


def ood_missed_at_95_id_kept(score: Floats, is_ood: Mask, weights: Floats | None = None) -> Floats:
    """Share of OOD rows that pass the lowest threshold that keeps at least 95 % of the in-distribution rows.

    "FPR95" with in-distribution as the positive kind, as ODIN reads it: what a gate set on known data lets through.
    """
    foreign, known = _split(Groups.of(score), is_ood, weights)
    return _share_at_95(np.cumsum(known, axis=0), np.cumsum(foreign, axis=0))


def augrc(failure: Floats, wrong: Mask, weights: Floats | None = None) -> Floats:
    """Area under the generalised risk-coverage curve (Traub et al., 2024): 0 to 0.5, lower is better.

    Rows are accepted in ascending order of the failure score; the generalised risk is the share of all rows that is
    accepted and wrong. Trapezoid over unique thresholds.

    Args:
        failure: Higher means more likely wrong (n,).
        wrong: (n,).
        weights: (n,) or (n, b).
    """
    error, right = _split(Groups.of(failure), wrong, weights)
    total = (error + right).sum(axis=0)
    risk = np.cumsum(error, axis=0)
    # A trapezoid between two thresholds: its width is the group's mass, its mid height the risk without half the group.
    return divide(((error + right) * (risk - error / 2)).sum(axis=0), total**2)


def risk_coverage(failure: Floats, wrong: Mask) -> tuple[Floats, Floats]:
    """Coverage and selective risk (share of the accepted rows that is wrong) at every unique threshold, (g,) each."""
    error, right = _split(Groups.of(failure), wrong, None)
    accepted = np.cumsum(error + right)
    return accepted / accepted[-1], np.cumsum(error) / accepted


def share(flag: Mask, weights: Floats | None = None) -> Floats:
    """Weighted share of flagged rows."""
    return mean(flag.astype(np.float64), weights)


def _split(groups: Groups, positive: Mask, weights: Floats | None) -> tuple[Floats, Floats]:
    """Weight of the positives and of the negatives in each group."""
    weights = np.ones(len(positive)) if weights is None else weights
    chosen = positive.reshape(-1, *([1] * (weights.ndim - 1)))
    up = groups.sums(np.where(chosen, weights, 0.0))
    return up, groups.sums(weights) - up


def _share_at_95(wanted: Floats, other: Floats) -> Floats:
    """Share of ``other`` where the running sum ``wanted`` first reaches 95 % of its end."""
    # Sums of whole weights: the slack keeps 19 of 20 from failing on the last bit of 0.95.
    reached = wanted >= 0.95 * wanted[-1] * (1 - 1e-12)
    first = np.argmax(reached, axis=0)
    at = np.take_along_axis(other, first[None, ...], axis=0)[0]
    return np.where(wanted[-1] > 0, divide(at, other[-1]), np.nan)
