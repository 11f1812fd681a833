"""What validation says about how to answer: thresholds and conformal sets, fitted on the answers of ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from histotl.learn.conformal import Conformal, Kind, chances, fit_interval, fit_sets
from histotl.learn.decision_rules import Rule, parse_rule, parse_sets
from histotl.learn.heads.base import Deciding, Spread
from histotl.learn.labels import hard
from histotl.learn.task import Task
from histotl.learn.thresholds import Threshold, choose_threshold

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LABEL_FROM = 0.5
"""Least probability of a label that is answered, where no threshold was chosen."""

SET, LOW, HIGH = ":set", ":low", ":high"
"""Ends of the names of columns with sets of classes (joined by ``;``) and with the ends of intervals."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How one task's probabilities or numbers become answers.

    Args:
        threshold: Of a two-class task; None for the more probable class.
        conformal: Of its sets or intervals; None for none.
        labels: Of each of several labels, None for one half; empty for one half for all.
    """

    threshold: Threshold | None = None
    conformal: Conformal | None = None
    labels: tuple[Threshold | None, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def decision_from_dict(entry: Mapping[str, object]) -> Decision:
    """Inverse of :meth:`Decision.to_dict`."""
    threshold, conformal = (cast("dict[str, object] | None", entry[name]) for name in ("threshold", "conformal"))
    labels = cast("list[dict[str, object] | None]", entry.get("labels", []))
    return Decision(
        threshold=_threshold(threshold),
        conformal=None if conformal is None else Conformal(**conformal),  # type: ignore[arg-type]
        labels=tuple(map(_threshold, labels)),
    )


def _threshold(entry: dict[str, object] | None) -> Threshold | None:
    return None if entry is None else Threshold(**entry)  # type: ignore[arg-type]


def decide(task: Task, probabilities: Floats, decision: Decision | None = None) -> Ints:
    """Class of each row: by the task's threshold, the head's own rule (the median grade), else the most probable."""
    if decision is not None and decision.threshold is not None:
        return np.asarray(probabilities[:, 1] >= decision.threshold.value, dtype=np.int64)
    if isinstance(task.head, Deciding):
        return task.head.decide(probabilities)
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def labels_of(probabilities: Floats, decision: Decision | None = None) -> npt.NDArray[np.bool_]:
    """Which labels each row has (n, k): those from their thresholds on, else from one half on."""
    found = () if decision is None else decision.labels
    least = [LABEL_FROM if threshold is None else threshold.value for threshold in found]
    return np.asarray(probabilities >= (np.array(least) if least else LABEL_FROM))


def fit_decisions(
    tasks: Sequence[Task],
    answers: Mapping[str, Floats],
    targets: Mapping[str, Floats],
    *,
    ids: Sequence[str],
    patients: Sequence[str],
    threshold: str,
    coverage: float,
    sets: str,
) -> tuple[dict[str, Decision], dict[str, str]]:
    """Thresholds and bounds from validation cases.

    Args:
        tasks: What is predicted.
        answers: Task name -> (n, k) probabilities, or (n, 1 + extras) numbers in units of the labels.
        targets: Task name -> (n,) or (n, c), NaN where missing.
        ids: Name of each case.
        patients: Patient of each case.
        threshold: Rule, see :func:`histotl.learn.decision_rules.parse_rule`.
        coverage: Share of cases whose truth is to be in the set; 0 for no sets.
        sets: See :func:`histotl.learn.decision_rules.parse_sets`.

    Returns:
        Task name -> decision; and task name -> what a user must know of it.
    """
    found: dict[str, Decision] = {}
    notes: dict[str, str] = {}
    for task in tasks:
        if task.nature.answers == "risk":
            continue
        if task.nature.answers == "labels":
            if threshold != "none":
                decision, note = _of_labels(task, parse_rule(threshold), answers[task.name], targets[task.name])
                found[task.name] = decision
                notes |= {task.name: note} if note else {}
            continue  # sets of sets of labels are not made
        target = hard(targets[task.name])
        known = np.flatnonzero(~np.isnan(target)).tolist()
        values, truth = answers[task.name][known], target[known]
        said = []
        chosen = None
        rule = parse_rule(threshold)
        if task.is_classification and task.n_classes == 2 and rule.name != "none":
            chosen = choose_threshold(rule, values[:, 1], truth == 1)
            if chosen is None:
                said.append(f"too few validation cases of a class to choose a threshold by {rule}: the likelier class")
        decision = Decision(threshold=chosen)
        if coverage:
            names, owners = [ids[i] for i in known], [patients[i] for i in known]
            bound = _conformal(task, values, truth, decision, names, owners, coverage, sets)
            decision = Decision(threshold=chosen, conformal=bound)
            if bound.bound is None:
                few = f"{bound.patients} validation patients are too few for {coverage:.0%} coverage"
                said.append(f"{few}: its sets hold everything")
        found[task.name] = decision
        if said:
            notes[task.name] = "; ".join(said)
    return found, notes


def _of_labels(task: Task, rule: Rule, values: Floats, target: Floats) -> tuple[Decision, str]:
    """A threshold for each label with cases enough of both kinds, and which labels have none."""
    known = ~np.isnan(target)
    labels = tuple(
        choose_threshold(rule, values[known[:, c], c], target[known[:, c], c] == 1) for c in range(task.n_classes)
    )
    few = [name for name, threshold in zip(task.classes, labels, strict=True) if threshold is None]
    note = f"too few validation cases with or without {', '.join(few)} to choose a threshold by {rule}: one half"
    return Decision(labels=labels), note if few else ""


def set_columns(
    task: Task, values: Floats, decision: Decision, ids: Sequence[str]
) -> dict[str, npt.NDArray[np.generic]]:
    """Columns of the predictions with the set or interval of each case; none where nothing was fitted."""
    if decision.conformal is None:
        return {}
    if not task.is_classification:
        low, high = decision.conformal.interval(*_ends(task, values))
        return {task.name + LOW: low, task.name + HIGH: high}
    inside = decision.conformal.members(values, decide(task, values, decision), chances(ids, task.name))
    names = np.array(task.classes, dtype=object)
    return {task.name + SET: np.array([";".join(names[row]) for row in inside], dtype=object)}


def slide_means(tiles: Mapping[str, Floats], offsets: Ints) -> dict[str, Floats]:
    """Task name -> mean of the answers for the tiles of each slide (B, k)."""
    return {n: np.add.reduceat(v, offsets[:-1], axis=0) / np.diff(offsets)[:, None] for n, v in tiles.items()}


def _ends(task: Task, values: Floats) -> tuple[Floats, Floats]:
    """Ends of the interval that the head itself states, or the number twice."""
    found = task.head.central(values) if isinstance(task.head, Spread) else None
    return (values[:, 0], values[:, 0]) if found is None else (found[:, 0], found[:, 1])


def _conformal(
    task: Task,
    values: Floats,
    truth: Floats,
    decision: Decision,
    ids: Sequence[str],
    patients: Sequence[str],
    coverage: float,
    sets: str,
) -> Conformal:
    if not task.is_classification:
        return fit_interval(*_ends(task, values), truth, patients=patients, coverage=coverage)
    kind: Kind = "grades" if task.nature.ordered else "classes"
    penalty, free = parse_sets(sets)
    return fit_sets(
        kind,
        values,
        decide(task, values, decision),
        truth.astype(np.int64),
        chance=chances(ids, task.name),
        patients=patients,
        coverage=coverage,
        penalty=penalty,
        free=free,
    )
