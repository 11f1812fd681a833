"""Sets of classes, runs of grades and intervals of numbers that hold the truth as often as was asked for.

Split conformal prediction on the validation cases. Cases of one patient are alike, patients are exchangeable: so the
quantile is that of hierarchical conformal prediction (Lee, Barber, Willett 2023, "Distribution-free inference with
hierarchical data"), in which each of K patients weighs 1 / (K + 1), shared by the patient's cases, and the rest is at
infinity. For a random case of a new patient the truth is then in the set with at least the probability asked for; with
one case a patient it is ordinary split conformal prediction. Fewer than coverage / (1 - coverage) validation patients
allow no bound, and the set holds everything. The guarantee is for patients like those of validation, on average over
them, and supposes that validation did nothing else: it has also chosen checkpoint and calibration, few numbers of many.

- classes: APS (Romano, Sesia, Candès 2020, "Classification with valid and adaptive coverage"), or RAPS (Angelopoulos
  et al. 2021), which makes large sets rarer. The random number that makes coverage exact is a digest of the case's id,
  so the same case always gets the same set.
- grades: the same with grades joining as neighbours from the answer outwards (Lu, Angelopoulos, Pomerantz 2022), so
  sets are runs without gaps.
- numbers: an interval around the prediction, by absolute residuals, or around two predicted quantiles (CQR, Romano,
  Patterson, Candès 2019).

The answer itself is always a member, with a score of 0, so no set is empty and no room is lost on leaving out answers
that are right; where a model is right more often than was asked for, sets are single classes and cover more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kind = Literal["classes", "grades", "interval"]


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """A fitted bound.

    Args:
        kind: What it bounds.
        coverage: Share of cases whose truth is to be in the set.
        bound: Largest score of a member; None where there were too few patients for one.
        patients: Validation patients with a label.
        rows: Validation cases with a label.
        penalty: RAPS: what each class beyond the first ``free`` adds to the score; 0 for APS.
        free: RAPS: classes without penalty.
    """

    kind: Kind
    coverage: float
    bound: float | None
    patients: int
    rows: int
    penalty: float = 0.0
    free: int = 1

    @property
    def limit(self) -> float:
        """The bound, infinite where there is none."""
        return math.inf if self.bound is None else self.bound

    def members(self, probability: Floats, answer: Ints, chance: Floats) -> npt.NDArray[np.bool_]:
        """Which classes are in the set of each case: bool (n, k).

        Args:
            probability: (n, k).
            answer: (n,) answered class, always a member.
            chance: (n,) from :func:`chances`.
        """
        scores = set_scores(self.kind, probability, answer, chance, penalty=self.penalty, free=self.free)
        return np.asarray(scores <= self.limit)

    def interval(self, low: Floats, high: Floats, scale: Floats | float = 1.0) -> tuple[Floats, Floats]:
        """Ends (n,) of the interval of each case, around a lower and an upper guess."""
        wide = self.limit * np.asarray(scale)
        middle = (low + high) / 2
        # A negative bound draws generous quantiles together, but not past each other.
        return np.minimum(low - wide, middle), np.maximum(high + wide, middle)


def set_scores(
    kind: Kind, probability: Floats, answer: Ints, chance: Floats, *, penalty: float = 0.0, free: int = 1
) -> Floats:
    """Score (n, k) of each class or grade, 0 for the answer: a set holds those up to a bound."""
    if kind == "grades":
        scores = grade_scores(probability, answer, chance)
    else:
        scores = class_scores(probability, chance, penalty=penalty, free=free)
    scores[np.arange(len(answer)), answer] = 0.0
    return scores


def class_scores(probability: Floats, chance: Floats, *, penalty: float = 0.0, free: int = 1) -> Floats:
    """Score (n, k) of each class: mass of the more probable ones, and a random part of its own."""
    order = np.argsort(-probability, axis=1, kind="stable")
    ranked = np.take_along_axis(probability, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    late = np.maximum(np.arange(1, probability.shape[1] + 1) - free, 0)
    scores = np.empty_like(probability)
    np.put_along_axis(scores, order, before + chance[:, None] * ranked + penalty * late, axis=1)
    return scores


def grade_scores(probability: Floats, answer: Ints, chance: Floats) -> Floats:
    """The same (n, k) with grades joining from the answer outwards, each time the more probable neighbour."""
    n, k = probability.shape
    scores, rows = np.empty((n, k)), np.arange(n)
    low, high, mass = answer.copy(), answer.copy(), np.zeros(n)
    joining = answer
    for _ in range(k):
        own = probability[rows, joining]
        scores[rows, joining] = mass + chance * own
        mass = mass + own
        low, high = np.minimum(low, joining), np.maximum(high, joining)
        below = np.where(low > 0, probability[rows, np.maximum(low - 1, 0)], -1.0)
        above = np.where(high < k - 1, probability[rows, np.minimum(high + 1, k - 1)], -1.0)
        joining = np.where(above >= below, np.minimum(high + 1, k - 1), low - 1)
    return scores


def interval_scores(low: Floats, high: Floats, truth: Floats, scale: Floats | float = 1.0) -> Floats:
    """Distance of the truth beyond an interval (n,), negative inside; absolute residuals if ``low`` = ``high``."""
    return np.asarray(np.maximum(low - truth, truth - high) / scale)


def patient_bound(scores: Floats, patients: Sequence[str], coverage: float) -> float | None:
    """Quantile of scores in which every patient counts the same; None when it lies at infinity.

    Args:
        scores: (n,).
        patients: Patient of each.
        coverage: Above 0 and below 1.
    """
    if not len(scores):
        return None
    _, place, count = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    weights = 1 / (count[place] * (len(count) + 1))
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order]) >= coverage - 1e-12
    return float(scores[order][int(np.argmax(reached))]) if reached.any() else None


def chances(ids: Sequence[str], task: str) -> Floats:
    """A number from 0 to below 1 for each case, a digest of its id and the task's name: (n,)."""
    digests = (hashlib.blake2b(f"{task}\0{name}".encode(), digest_size=8).digest() for name in ids)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests], dtype=np.float64)


def fit_sets(
    kind: Kind,
    probability: Floats,
    answer: Ints,
    truth: Ints,
    *,
    chance: Floats,
    patients: Sequence[str],
    coverage: float,
    penalty: float = 0.0,
    free: int = 1,
) -> Conformal:
    """Bound for sets of classes or runs of grades from labelled validation cases (n,)."""
    scores = set_scores(kind, probability, answer, chance, penalty=penalty, free=free)
    bound = patient_bound(scores[np.arange(len(truth)), truth], patients, coverage)
    return Conformal(
        kind=kind,
        coverage=coverage,
        bound=bound,
        patients=len(set(patients)),
        rows=len(truth),
        penalty=penalty,
        free=free,
    )


def fit_interval(
    low: Floats,
    high: Floats,
    truth: Floats,
    *,
    patients: Sequence[str],
    coverage: float,
    scale: Floats | float = 1.0,
) -> Conformal:
    """Bound for intervals from labelled validation cases (n,): CQR, or residuals where ``low`` = ``high``."""
    bound = patient_bound(interval_scores(low, high, truth, scale), patients, coverage)
    return Conformal(kind="interval", coverage=coverage, bound=bound, patients=len(set(patients)), rows=len(truth))
