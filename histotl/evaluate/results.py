"""What evaluation finds, as frozen values, and what each metric means in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from histotl.core.intervals import Estimate
from histotl.evaluate import metrics
from histotl.evaluate.metrics import Floats, Ints

FEW = 20
"""Below this many rows of a class, or patients in all, an interval is marked as rough."""

FEW_UNITS = 10
"""The same for the patients of one class."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """How a metric is shown.

    Args:
        label: Its name for people.
        better: ``higher`` or ``lower``.
        text: What it is, in one line.
    """

    label: str
    better: str
    text: str


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "balanced_accuracy": Meaning(
            label="Balanced accuracy",
            better="higher",
            text="mean recall over the classes that have rows; chance is 1 / number of classes",
        ),
        "auroc": Meaning(label="AUROC", better="higher", text="of the second class against the first"),
        "auroc_macro_ovr": Meaning(
            label="AUROC, macro one-vs-rest", better="higher", text="mean over classes of one class against the rest"
        ),
        "average_precision": Meaning(
            label="Average precision", better="higher", text="of the second class, step function; chance is its share"
        ),
        "f1_macro": Meaning(label="F1, macro", better="higher", text="unweighted mean over classes"),
        "accuracy": Meaning(label="Accuracy", better="higher", text="share of rows with the right class"),
        "quadratic_kappa": Meaning(
            label="Quadratic weighted kappa", better="higher", text="agreement on ordered classes beyond chance"
        ),
        "grade_mae": Meaning(label="MAE, grades", better="lower", text="mean distance of predicted and true grade"),
        "expected_grade_mae": Meaning(
            label="MAE, expected grade", better="lower", text="the same with the expectation of the grade"
        ),
        "mae": Meaning(label="MAE", better="lower", text="mean absolute error in the unit of the value"),
        "r2": Meaning(label="R²", better="higher", text="1 - squared error / variance of the test set's own truth"),
        "spearman": Meaning(label="Spearman's ρ", better="higher", text="rank correlation, ties at midranks"),
        "ece": Meaning(label="ECE", better="lower", text="expected calibration error, 15 bins of equal mass"),
        "brier": Meaning(
            label="Brier score", better="lower", text="0 to 1 for two classes, 0 to 2 (summed over classes) for more"
        ),
        "nll": Meaning(label="NLL", better="lower", text="negative log likelihood, nats"),
        "soft_brier": Meaning(
            label="Brier score, votes", better="lower", text="against the shares of the votes, summed over classes"
        ),
        "soft_nll": Meaning(label="NLL, votes", better="lower", text="cross-entropy against the shares of the votes"),
        "auroc_labels": Meaning(
            label="AUROC, mean of labels", better="higher", text="of rows with a label against rows without it"
        ),
        "map_labels": Meaning(
            label="mAP", better="higher", text="mean over labels of average precision; chance is the mean share"
        ),
        "f1_labels": Meaning(label="F1, mean of labels", better="higher", text="labels of probability 0.5 or more"),
        "brier_labels": Meaning(label="Brier score", better="lower", text="mean over known entries, 0 to 1"),
        "nll_labels": Meaning(label="NLL", better="lower", text="mean over known entries, nats"),
        "coverage_90": Meaning(
            label="Coverage of 90 %", better="higher", text="share of values in the stated 90 % interval; 0.9 is right"
        ),
        "width_90": Meaning(label="Width of 90 %", better="lower", text="mean width of that interval"),
        "c_index": Meaning(
            label="C-index", better="higher", text="Harrell's: pairs of known order that the risk orders; chance is 0.5"
        ),
        "c_index_uno": Meaning(
            label="C-index, Uno", better="higher", text="the same, weighted against early ends of observation"
        ),
        "set_coverage": Meaning(
            label="Coverage of sets",
            better="higher",
            text="share of rows whose set or interval holds the truth",
        ),
        "set_size": Meaning(label="Size of sets", better="lower", text="mean number of classes in a conformal set"),
        "interval_width": Meaning(
            label="Width of intervals", better="lower", text="mean width of the conformal interval, unit of the value"
        ),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What was predicted for the labelled rows of one task. n rows, k classes.

    Args:
        name: Of the task.
        kind: Of the task, for people.
        answers: ``classes``, ``labels``, ``number`` or ``risk``, as the task's head says.
        classes: Names of classes or labels in order; empty for others.
        names: Slide id or patch path of each row.
        truth: Class index, value or time (n,); of labels 1, 0 or NaN (n, k).
        predicted: Predicted class index, value or risk (n,); of labels 1 or 0 (n, k).
        probability: (n, k) for classes and labels, else None.
        uncalibrated: Probabilities before calibration (n, k), when they are known.
        expected: Expected grade of an ordinal task (n,), when it is known.
        covered: Whether the conformal set or interval holds the truth, 0 or 1 (n,), when there are sets.
        set_size: Classes in the set, or width of the interval (n,).
        unit: Index of each row's patient (n,).
        shares: Shares of the votes (n, k), of a task with votes; its truth is their majority.
        interval: Ends (n, 2) of the predicted 90 % interval of a value, when there is one.
        event: Whether the event was seen (n,), of a risk.
    """

    name: str
    kind: str
    answers: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    truth: Floats
    predicted: Floats
    probability: Floats | None
    unit: Ints
    uncalibrated: Floats | None = None
    expected: Floats | None = None
    shares: Floats | None = None
    interval: Floats | None = None
    event: npt.NDArray[np.bool_] | None = None
    covered: Floats | None = None
    set_size: Floats | None = None

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def wrongness(self) -> Floats:
        """1 - probability of the true class, mean of these over labels, or the absolute error (n,); 0 for a risk."""
        if self.event is not None:
            return np.zeros(len(self))
        if self.probability is None:
            return metrics.absolute_errors(self.truth, self.predicted)
        if self.answers == "labels":
            return np.asarray(np.nanmean(np.abs(self.truth - self.probability), axis=1))
        return 1 - self.probability[np.arange(len(self)), self.truth.astype(np.int64)]


@dataclass(frozen=True, kw_only=True)
class ClassRecall:
    """Recall of one class."""

    name: str
    rows: int
    units: int
    recall: Estimate


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """How one of several labels is told: rows that say something about it, and how many have it."""

    name: str
    rows: int
    positive: int
    auroc: Estimate
    average_precision: Estimate


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One bin of a reliability curve: mean confidence, and the share that was right with its interval."""

    rows: int
    confidence: float
    correct: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResult:
    """The evidence for one task.

    Args:
        answers: The rows it was measured on.
        units: Patients.
        metrics: Name in :data:`MEANINGS` -> estimate.
        majority: The same metrics of the majority baseline, without intervals.
        recalls: One a class.
        labels: One a label.
        confusion: Counts (k, k), rows are the truth; None without classes.
        reliability: Bins as the model states its probabilities.
        reliability_before: Bins before calibration, when known.
        ece_before: ECE before calibration, when known.
        notes: What a reader must know before believing the intervals.
    """

    answers: Answers
    units: int
    metrics: Mapping[str, Estimate]
    majority: Mapping[str, float]
    recalls: tuple[ClassRecall, ...] = ()
    labels: tuple[LabelResult, ...] = ()
    confusion: npt.NDArray[np.int64] | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    reliability_before: tuple[ReliabilityBin, ...] = ()
    ece_before: Estimate | None = None
    notes: tuple[str, ...] = ()
