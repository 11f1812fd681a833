"""Figures on the validation cases, to see whether training went well. Results are the business of ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from histotl.learn.calibrate import entry_loss, negative_log_likelihood
from histotl.learn.calibrators import Calibration, Temperature, averaged
from histotl.learn.concordance import concordance
from histotl.learn.decisions import Decision, decide
from histotl.learn.heads.base import Floats, decoded
from histotl.learn.labels import hard, known_rows
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
        targets: Task name -> (n,) or (n, c).
        calibrations: Task name -> what makes its probabilities come true.
        facts: Scale of regression labels.
        decisions: Task name -> how its class is chosen.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in tasks:
        known = np.flatnonzero(known_rows(targets[task.name]))
        target, rows = targets[task.name][known], [o[torch.from_numpy(known)] for o in outputs[task.name]]
        found: dict[str, float] = {"n": float(len(known))}
        if len(known) and task.is_classification:
            calibration = calibrations.get(task.name, Temperature())
            truth = hard(target).astype(np.int64)
            found |= _classification(task, rows, truth, calibration, decisions.get(task.name))
        elif len(known) and task.nature.answers == "labels":
            found |= _labels(task, rows, target, calibrations.get(task.name, Temperature()))
        elif len(known):
            values, fact = averaged(task, rows), facts[task.name]
            answer = decoded(task.head, values, fact)[:, 0]
            found |= _concordance(answer, target) if task.event else _number(answer, target, fact)
        scores[task.name] = {name: round(value, 6) for name, value in found.items()}
    return scores


def _number(values: Floats, target: Floats, fact: TaskFacts) -> dict[str, float]:
    return {
        "mae": float(np.abs(values - target).mean()),
        "mae_of_mean": float(np.abs(fact.mean - target).mean()),
    }


def _concordance(risk: Floats, target: Floats) -> dict[str, float]:
    event = target[:, 1] > 0
    found = float(concordance(risk, target[:, 0], event))
    return {"events": float(event.sum())} | ({} if np.isnan(found) else {"c_index": found})


def _labels(task: Task, rows: Sequence[torch.Tensor], target: Floats, calibration: Calibration) -> dict[str, float]:
    """Mean AUROC over labels with both kinds of rows, and the mean negative log-likelihood of an entry."""
    p = calibration.probabilities(task, rows)
    known = ~np.isnan(target)
    both = [c for c in range(target.shape[1]) if len(np.unique(target[known[:, c], c])) == 2]
    areas = [roc_auc_score(target[known[:, c], c], p[known[:, c], c]) for c in both]
    found = {"nll": entry_loss(p, target), "nll_uncalibrated": entry_loss(averaged(task, rows), target)}
    return found | ({"auroc_macro": float(np.mean(areas))} if areas else {})


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
    if task.n_classes == 2 and len(np.unique(target)) == 2:
        found["auroc"] = float(roc_auc_score(target, p[:, 1]))
    return found
