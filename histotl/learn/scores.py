"""Figures on the validation cases, to see whether training went well. Results are the business of ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from histotl.learn.calibrate import negative_log_likelihood
from histotl.learn.calibrators import Calibration, Temperature, averaged
from histotl.learn.decisions import Decision, decide
from histotl.learn.objective import Targets, TaskFacts
from histotl.learn.task import Task


def entropy(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy of each row in nats."""
    p = np.maximum(probabilities, 1e-300)
    return np.asarray(-(probabilities * np.log(p)).sum(axis=1))


def validation_scores(
    tasks: Sequence[Task],
    outputs: Mapping[str, Sequence[torch.Tensor]],
    targets: Targets,
    calibrations: Mapping[str, Calibration],
    facts: Mapping[str, TaskFacts],
    decisions: Mapping[str, Decision],
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value on the labelled validation rows.

    Args:
        tasks: What is predicted.
        outputs: Task name -> outputs of each member (n, o).
        targets: Task name -> (n,).
        calibrations: Task name -> what makes its probabilities come true.
        facts: Scale of regression labels.
        decisions: Task name -> how its class is chosen.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in tasks:
        known = np.flatnonzero(~np.isnan(targets[task.name]))
        target, rows = targets[task.name][known], [o[torch.from_numpy(known)] for o in outputs[task.name]]
        found: dict[str, float] = {"n": float(len(known))}
        if len(known) and task.is_classification:
            calibration = calibrations.get(task.name, Temperature())
            found |= _classification(task, rows, target.astype(np.int64), calibration, decisions.get(task.name))
        elif len(known):
            values = averaged(task, rows)[:, 0] * facts[task.name].std + facts[task.name].mean
            found["mae"] = float(np.abs(values - target).mean())
            found["mae_of_mean"] = float(np.abs(facts[task.name].mean - target).mean())
        scores[task.name] = {name: round(value, 6) for name, value in found.items()}
    return scores


def _classification(
    task: Task,
    rows: Sequence[torch.Tensor],
    target: npt.NDArray[np.int64],
    calibration: Calibration,
    decision: Decision | None,
) -> dict[str, float]:
    p = calibration.probabilities(task, rows)
    predicted = decide(task, p, decision)
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
