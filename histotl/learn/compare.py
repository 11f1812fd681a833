"""Two ways of answering the same cases, compared on the same draws of patients.

Evaluation has more metrics; these are the ones that every task has, for the comparisons that training itself makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.learn.calibrate import P_MIN
from histotl.learn.concordance import concordance
from histotl.learn.labels import hard, known_rows
from histotl.learn.model import Model
from histotl.learn.task import Task

RESAMPLES = 1000

Floats = npt.NDArray[np.float64]
Answered = tuple[Floats, npt.NDArray[np.int64]]
"""Answers (n, k), and the classes (n,) that they were decided to be; of numbers any (n,)."""


def answered(model: Model, task: Task, values: Floats) -> Answered:
    """Answers (n, k) of a model with its classes."""
    if not task.is_classification:
        return values, np.zeros(len(values), dtype=np.int64)
    return values, model.decide(task, values)


def draws_of(patients: Sequence[str], *, seed: int) -> Resamples:
    """Draws of patients; one patient alone allows none."""
    unit = np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)
    return Resamples.draw(unit, RESAMPLES if unit.max() > 0 else 0, seed)


def metric_draws(task: Task, found: Answered, truth: Floats, draws: Resamples) -> dict[str, Floats]:
    """Metric -> its value on every draw (1 + b,), for labelled cases.

    Args:
        task: What was answered.
        found: The answers.
        truth: (n,), or (n, c) of labels and of time and event; no case without any.
        draws: Over the same cases.
    """
    values, decided = found
    if task.nature.answers == "number":
        return {"mae": draws.mean(np.abs(values[:, 0] - truth))}
    if task.nature.answers == "risk":
        time, event = truth[:, 0], truth[:, 1] > 0
        return {"c_index": draws.rows(lambda weights: concordance(values[:, 0], time, event, weights))}
    if task.nature.answers == "labels":
        known = ~np.isnan(truth)
        loss = np.where(known, -np.log(np.maximum(np.where(truth == 1, values, 1 - values), P_MIN)), 0.0)
        sums = draws.sums(np.stack([loss.sum(axis=1), known.sum(axis=1)], axis=1))
        return {"nll_labels": np.asarray(sums[:, 0] / sums[:, 1])}
    classes = truth.astype(np.int64)
    confusion = draws.confusion(classes, decided, values.shape[1])
    held = confusion.sum(axis=2)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    # Classes that a draw does not hold have no recall.
    recalls = np.divide(hits, held, out=np.zeros_like(hits), where=held > 0)
    loss = -np.log(np.maximum(values[np.arange(len(classes)), classes], P_MIN))
    return {
        "balanced_accuracy": np.asarray(recalls.sum(axis=1) / (held > 0).sum(axis=1)),
        "nll": draws.mean(loss),
    }


def mean_draws(
    task: Task, models: Sequence[Answered], truth: Floats, patients: Sequence[str], *, seed: int
) -> dict[str, Floats]:
    """The same, mean over models (such as those of several seeds), on the labelled ones of n cases."""
    known = np.flatnonzero(known_rows(truth))
    if not len(known):
        return {}
    truth = hard(truth) if task.is_classification else truth
    draws = draws_of([patients[i] for i in known.tolist()], seed=seed)
    found = [metric_draws(task, (values[known], decided[known]), truth[known], draws) for values, decided in models]
    return {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}


def difference(
    task: Task,
    multi: Sequence[Answered],
    single: Sequence[Answered],
    truth: Floats,
    patients: Sequence[str],
    *,
    seed: int,
) -> dict[str, dict[str, object]]:
    """Metric -> ``multi``, ``single``, and ``delta`` = multi less single with its paired patient-bootstrap interval.

    Args:
        task: What was answered, in the same cases by all.
        multi: Models of several tasks.
        single: Models of this task alone.
        truth: (n,), NaN where missing.
        patients: Patient of each case.
        seed: Of the bootstrap.
    """
    ours, theirs = (mean_draws(task, models, truth, patients, seed=seed) for models in (multi, single))
    return {
        name: {
            "multi": float(ours[name][0]),
            "single": float(theirs[name][0]),
            "delta": estimate(ours[name] - theirs[name]).to_dict(),
        }
        for name in ours
    }


def estimates(
    task: Task, models: Sequence[Answered], truth: Floats, patients: Sequence[str], *, seed: int
) -> dict[str, Estimate]:
    """Metric -> mean over models, with patient-bootstrap interval."""
    found = mean_draws(task, models, truth, patients, seed=seed)
    return {name: estimate(values) for name, values in found.items()}
