"""Figures on the validation cases, to see whether training went well. Results are the business of ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from histotl.learn.calibrate import averaged, negative_log_likelihood
from histotl.learn.objective import Targets, TaskFacts
from histotl.learn.task import Task


def decide(task: Task, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Class of each row: the median grade of an ordinal task, else the most probable class.

    The median is the grade of least expected distance, and what CORN's own rule (P(above) > 0.5) gives.
    """
    if task.kind != "ordinal":
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    below = np.cumsum(probabilities, axis=1)[:, :-1] < 0.5
    return np.asarray(below.sum(axis=1), dtype=np.int64)


def entropy(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy of each row in nats."""
    p = np.maximum(probabilities, 1e-300)
    return np.asarray(-(probabilities * np.log(p)).sum(axis=1))


def validation_scores(
    tasks: Sequence[Task],
    outputs: Mapping[str, Sequence[torch.Tensor]],
    targets: Targets,
    temperatures: Mapping[str, float],
    facts: Mapping[str, TaskFacts],
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value on the labelled validation rows.

    Args:
        tasks: What is predicted.
        outputs: Task name -> outputs of each member (n, o).
        targets: Task name -> (n,).
        temperatures: Task name -> temperature.
        facts: Scale of regression labels.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in tasks:
        known = np.flatnonzero(~np.isnan(targets[task.name]))
        target, rows = targets[task.name][known], [o[torch.from_numpy(known)] for o in outputs[task.name]]
        found: dict[str, float] = {"n": float(len(known))}
        if len(known) and task.is_classification:
            found |= _classification(task, rows, target.astype(np.int64), temperatures.get(task.name, 1.0))
        elif len(known):
            values = averaged(task, rows)[:, 0] * facts[task.name].std + facts[task.name].mean
            found["mae"] = float(np.abs(values - target).mean())
            found["mae_of_mean"] = float(np.abs(facts[task.name].mean - target).mean())
        scores[task.name] = {name: round(value, 6) for name, value in found.items()}
    return scores


def _classification(
    task: Task, rows: Sequence[torch.Tensor], target: npt.NDArray[np.int64], temperature: float
) -> dict[str, float]:
    p = averaged(task, rows, temperature)
    predicted = decide(task, p)
    recalls = [float((predicted[target == c] == c).mean()) for c in np.unique(target)]
    found = {
        "balanced_accuracy": float(np.mean(recalls)),
        "accuracy": float((predicted == target).mean()),
        "nll": negative_log_likelihood(p, target),
        "nll_uncalibrated": negative_log_likelihood(averaged(task, rows), target),
    }
    if task.kind == "binary" and len(np.unique(target)) == 2:
        found["auroc"] = float(roc_auc_score(target, p[:, 1]))
    return found
