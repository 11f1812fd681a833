"""Temperature scaling on validation labels, for the averaged members (Guo et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from histotl.learn.task import Task

T_MIN, T_MAX = 0.05, 20.0
"""Range of temperatures; a hit on its end means that the answers carry no usable confidence."""

MIN_LABELLED = 10
"""With fewer labelled validation rows the temperature stays 1."""

P_MIN = 1e-12


def averaged(task: Task, outputs: Sequence[torch.Tensor], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Mean over members of the probabilities at a temperature.

    Args:
        task: Whose outputs these are.
        outputs: One float (n, o) a member.
        temperature: What outputs of classification tasks are divided by.

    Returns:
        float64 (n, k), rows summing to 1; (n, 1) standardised values for regression.
    """
    scale = temperature if task.is_classification else 1.0
    members = [task.head.probabilities(output.double() / scale) for output in outputs]
    return np.asarray(torch.stack(members).mean(dim=0).cpu().numpy(), dtype=np.float64)


def negative_log_likelihood(probabilities: npt.NDArray[np.float64], target: npt.NDArray[np.int64]) -> float:
    """Mean of -log p(true class)."""
    chosen = probabilities[np.arange(len(target)), target]
    return float(-np.log(np.maximum(chosen, P_MIN)).mean())


def fit_temperature(task: Task, outputs: Sequence[torch.Tensor], target: npt.NDArray[np.float64]) -> float:
    """Temperature of least negative log-likelihood on labelled validation rows.

    Args:
        task: A classification task.
        outputs: One float (n, o) a member, of the validation rows.
        target: float (n,) class indices, NaN where missing.

    Returns:
        The temperature; 1 when fewer than ``MIN_LABELLED`` rows are labelled.
    """
    known = np.flatnonzero(~np.isnan(target))
    if len(known) < MIN_LABELLED:
        return 1.0
    rows, classes = [output[torch.from_numpy(known)] for output in outputs], target[known].astype(np.int64)

    def cost(log_t: float) -> float:
        return negative_log_likelihood(averaged(task, rows, math.exp(log_t)), classes)

    found = minimize_scalar(cost, bounds=(math.log(T_MIN), math.log(T_MAX)), method="bounded", options={"xatol": 1e-4})
    return float(math.exp(found.x)) if cost(found.x) < cost(0.0) else 1.0


def calibrate(
    tasks: Sequence[Task], outputs: Mapping[str, Sequence[torch.Tensor]], targets: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, float]:
    """Task name -> temperature, for every classification task."""
    return {
        task.name: fit_temperature(task, outputs[task.name], targets[task.name])
        for task in tasks
        if task.is_classification
    }
