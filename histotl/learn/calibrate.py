"""Calibration on validation labels: temperature, vector or isotonic, for the averaged members.

Whatever is asked for, the negative log-likelihood on validation does not rise: a richer map that does no better than
the temperature is not taken, nor one for which there are too few labels. The model's file says what became of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.isotonic import IsotonicRegression

from histotl.learn.calibrators import Calibration, Isotonic, Temperature, Vector, averaged
from histotl.learn.labels import hard, known_rows
from histotl.learn.task import Task

T_MIN, T_MAX = 0.05, 20.0
"""Range of temperatures; a hit on its end means that the answers carry no usable confidence."""

MIN_LABELLED = 10
"""With fewer labelled validation rows nothing is calibrated."""

VECTOR_ROWS = 20
"""Labelled validation rows that vector scaling needs for each output of the task."""

ISOTONIC_ROWS = 1000
"""Labelled validation rows that a step function needs."""

P_MIN = 1e-12

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What calibration came to.

    Args:
        calibrations: Task name -> map, for every task with classes or labels.
        notes: Task name -> why it is not what was asked for.
    """

    calibrations: Mapping[str, Calibration]
    notes: Mapping[str, str]


def negative_log_likelihood(probabilities: Floats, target: Ints) -> float:
    """Mean of -log p(true class)."""
    chosen = probabilities[np.arange(len(target)), target]
    return float(-np.log(np.maximum(chosen, P_MIN)).mean())


def entry_loss(probabilities: Floats, target: Floats) -> float:
    """The same of labels (n, k), 1 or 0: mean over the known entries."""
    chosen = np.where(target == 1, probabilities, 1 - probabilities)[~np.isnan(target)]
    return float(-np.log(np.maximum(chosen, P_MIN)).mean())


def calibrate(
    tasks: Sequence[Task],
    outputs: Mapping[str, Sequence[torch.Tensor]],
    targets: Mapping[str, Floats],
    method: str = "temperature",
) -> Calibrated:
    """Fit one map for every task with classes or labels.

    Args:
        tasks: What is predicted.
        outputs: Task name -> outputs (n, o) of each member on the validation rows.
        targets: Task name -> (n,) class indices, or labels (n, k), NaN where missing; see :func:`stated`.
        method: ``temperature``, ``vector``, ``isotonic`` or ``none``.
    """
    found: dict[str, Calibration] = {}
    notes: dict[str, str] = {}
    for task in tasks:
        if not task.classes or method == "none":
            continue
        known = np.flatnonzero(known_rows(targets[task.name]))
        rows = [output[torch.from_numpy(known)] for output in outputs[task.name]]
        found[task.name], note = _fit(task, rows, targets[task.name][known], method)
        if note:
            notes[task.name] = note
    return Calibrated(calibrations=found, notes=notes)


def stated(task: Task, target: Floats) -> Floats:
    """What probabilities are held against: the class (n,), of votes by majority; or the labels (n, k)."""
    return hard(target) if task.is_classification else target


def fit_temperature(task: Task, outputs: Sequence[torch.Tensor], target: Floats) -> float:
    """Temperature of least negative log-likelihood on labelled validation rows.

    Args:
        task: With classes or labels.
        outputs: One float (n, o) a member, of the validation rows.
        target: float (n,) class indices or (n, k) labels, NaN where missing.

    Returns:
        The temperature; 1 when fewer than ``MIN_LABELLED`` rows are labelled.
    """
    known = np.flatnonzero(known_rows(target))
    if len(known) < MIN_LABELLED:
        return 1.0
    rows = [output[torch.from_numpy(known)] for output in outputs]

    def cost(log_t: float) -> float:
        return _loss(task, averaged(task, rows, math.exp(log_t)), target[known])

    found = minimize_scalar(cost, bounds=(math.log(T_MIN), math.log(T_MAX)), method="bounded", options={"xatol": 1e-4})
    return float(math.exp(found.x)) if cost(found.x) < cost(0.0) else 1.0


def fit_vector(task: Task, outputs: Sequence[torch.Tensor], target: Floats, *, start: float) -> Vector:
    """Scales and shifts of least negative log-likelihood, searched from a temperature.

    Args:
        task: With classes or labels.
        outputs: One float (n, o) a member, labelled rows only.
        target: float (n,) classes or (n, k) labels.
        start: The temperature.
    """
    width = outputs[0].shape[1]

    def made(parameters: Floats) -> Vector:
        # Scales are kept above 0, or the order of the answers could turn around.
        scale = np.clip(np.exp(np.clip(parameters[:width], -10, 10)), 1 / T_MAX, 1 / T_MIN)
        return Vector(scale=tuple(scale.tolist()), shift=tuple(parameters[width:].tolist()))

    def cost(parameters: Floats) -> float:
        return _loss(task, made(parameters).probabilities(task, outputs), target)

    begin = np.concatenate([np.full(width, -math.log(start)), np.zeros(width)])
    return made(np.asarray(minimize(cost, begin, method="L-BFGS-B").x))


def fit_isotonic(task: Task, outputs: Sequence[torch.Tensor], target: Floats) -> Isotonic:
    """One rising line a class, fitted against the others; or a label, against its absence.

    No class is ever given less than one half in (rows + 1), since a probability of 0 claims to know all rows to come.

    Args:
        task: With classes or labels.
        outputs: One float (n, o) a member, labelled rows only.
        target: float (n,) classes or (n, k) labels.
    """
    plain, least = averaged(task, outputs), 0.5 / (len(target) + 1)
    knots, values = [], []
    for c in range(plain.shape[1]):
        truth = np.where(np.isnan(target), np.nan, target == c) if task.is_classification else target[:, c]
        known = ~np.isnan(truth)
        line = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
        line.fit(plain[known, c], truth[known])
        knots.append(tuple(line.X_thresholds_.tolist()))
        values.append(tuple(line.y_thresholds_.tolist()))
    return Isotonic(knots=tuple(knots), values=tuple(values))


def _loss(task: Task, probabilities: Floats, target: Floats) -> float:
    if task.is_classification:
        return negative_log_likelihood(probabilities, target.astype(np.int64))
    return entry_loss(probabilities, target)


def _fit(task: Task, rows: Sequence[torch.Tensor], target: Floats, method: str) -> tuple[Calibration, str]:
    """The map, and why it is another one than was asked for."""
    if len(target) < MIN_LABELLED:
        return Temperature(), f"{len(target)} labelled validation rows, {MIN_LABELLED} needed: not calibrated"
    plain = Temperature(temperature=fit_temperature(task, rows, target))
    if method == "temperature":
        return plain, ""
    needed = VECTOR_ROWS * rows[0].shape[1] if method == "vector" else ISOTONIC_ROWS
    if len(target) < needed:
        return plain, f"{len(target)} labelled validation rows, {method} needs {needed}: temperature instead"
    richer: Calibration
    if method == "vector":
        richer = fit_vector(task, rows, target, start=plain.temperature)
    else:
        richer = fit_isotonic(task, rows, target)
    losses = [_loss(task, found.probabilities(task, rows), target) for found in (plain, richer)]
    if losses[1] < losses[0]:
        return richer, ""
    return plain, f"{method} is no better than the temperature on validation: temperature instead"
