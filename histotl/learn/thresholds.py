"""From which probability on a two-class task says yes: chosen on validation by a rule, never on test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.learn.decision_rules import Rule

Floats = npt.NDArray[np.float64]

MIN_EACH = 5
"""Fewer labelled validation cases of either class choose nothing."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A chosen threshold.

    Args:
        rule: The rule's text.
        value: Probability of the second class from which on it is the answer.
        sensitivity: On validation, which chose it: optimistic.
        specificity: The same.
        rows: Labelled validation cases.
    """

    rule: str
    value: float
    sensitivity: float
    specificity: float
    rows: int


def choose_threshold(rule: Rule, probability: Floats, truth: npt.NDArray[np.bool_]) -> Threshold | None:
    """The threshold that a rule picks; None when there are too few cases of a class to pick one.

    Args:
        rule: Any but ``none``.
        probability: (n,) of the second class, on validation.
        truth: (n,) whether the case is of the second class.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if min(positives, negatives) < MIN_EACH:
        return None
    ordered = np.unique(probability)
    # Between two cases, so that no rounding decides a case of validation; and below all of them.
    places = np.concatenate([[ordered[0] / 2], (ordered[1:] + ordered[:-1]) / 2])
    found = np.searchsorted(np.sort(probability[truth]), places, side="left")
    kept = np.searchsorted(np.sort(probability[~truth]), places, side="left")
    sensitivity: Floats = np.asarray(1 - found / positives, dtype=np.float64)
    specificity: Floats = np.asarray(kept / negatives, dtype=np.float64)
    merit: Floats
    if rule.name == "youden":
        merit = sensitivity + specificity
    elif rule.name == "cost":
        merit = np.asarray(kept - rule.value * found, dtype=np.float64)
    else:
        merit = np.where(sensitivity >= rule.value - 1e-12, specificity, -1.0)
    # Of equally good ones, the one nearest to an even chance.
    best = np.flatnonzero(merit >= merit.max() - 1e-12)
    at = int(best[np.argmin(np.abs(places[best] - 0.5))])
    return Threshold(
        rule=str(rule),
        value=float(places[at]),
        sensitivity=float(sensitivity[at]),
        specificity=float(specificity[at]),
        rows=len(truth),
    )
