"""Weights of tasks from the Gramian of their gradients: small convex problems, solved without a solver library.

``J`` (T, P) holds one gradient a task and ``G = J Jᵀ`` (T, T). Every function takes G, float64, symmetric and positive
semidefinite, and returns float64 (T,) weights ``a`` of the direction ``d = Jᵀ a``. They are on the scale of a plain
sum: a rule that finds nothing to balance answers 1 for each task, and one task alone gets 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Array = npt.NDArray[np.float64]
Solver = Callable[[Array], Array]

RIDGE = 1e-8
"""Added to a Gramian of unit scale where a solution would else be infinite: with exactly opposite gradients."""

RANK = 1e-10
"""Eigenvalues below this share of the largest are those of directions in which there is no gradient."""

SIMPLEX = 1e4
"""Weight of the row that holds weights to sum 1, in units of the other rows."""


def mgda(gramian: Array) -> Array:
    """The shortest vector in the hull of the gradients (Désidéri 2012; Sener and Koltun 2018), times T.

    Every task's gradient g satisfies ``<g, d> >= |d|²`` for the vector d, so that none is made worse.
    """
    tasks, scale = len(gramian), _scale(gramian)
    if not scale:
        return np.ones(tasks)
    rows = np.vstack([_root(gramian / scale), np.full((1, tasks), SIMPLEX)])
    wanted = np.zeros(len(rows))
    wanted[-1] = SIMPLEX
    found: Array = nnls(rows, wanted)[0]
    return np.asarray(tasks * found / found.sum())


def upgrad(gramian: Array) -> Array:
    """Sum of the gradients, each projected on the cone of directions that make no task worse (Quinton and Rey 2024)."""
    tasks, scale = len(gramian), _scale(gramian)
    if not scale:
        return np.ones(tasks)
    root = _root(gramian / scale)
    # min vᵀGv with v ≥ e_t; v = e_t + w with w ≥ 0 makes it a non-negative least squares problem.
    added: Array = np.sum([nnls(root, -root[:, t])[0] for t in range(tasks)], axis=0)
    return 1 + added


def imtl_g(gramian: Array) -> Array:
    """Equal projections on all unit gradients (Liu et al. 2021, IMTL-G).

    The sum of the absolute weights is T: dividing by the plain sum, as published, turns the direction round where that
    is negative. Where no direction has equal projections, as with opposite gradients, it is the sum of the unit
    gradients.
    """
    tasks = len(gramian)
    lengths = np.sqrt(np.diag(gramian))
    live = _live(gramian)
    if not live.any():
        return np.ones(tasks)
    unit = gramian[np.ix_(live, live)] / np.outer(lengths[live], lengths[live])
    weights = np.zeros(tasks)
    weights[live] = np.linalg.pinv(unit, rcond=RANK, hermitian=True).sum(axis=1) / lengths[live]
    # For unit gradients the absolute weights sum to 1 or more where there is a solution, and to 0 where there is none.
    if np.abs(weights * lengths).sum() < 0.5:
        weights[live] = 1 / lengths[live]
    return np.asarray(tasks * weights / np.abs(weights).sum())


def bargain(gramian: Array, ridge: float = RIDGE) -> Array:
    """The positive a with ``a * (G a) = 1``: the stationary point of ``aᵀGa/2 - sum(log a)``, by damped Newton steps.

    Args:
        gramian: With a positive diagonal.
        ridge: Added to the diagonal after it was scaled to 1: with exactly opposite gradients there is no solution.
    """
    lengths = np.sqrt(np.diag(gramian))
    unit = gramian / np.outer(lengths, lengths) + ridge * np.eye(len(gramian))
    a = np.full(len(unit), 1 / np.sqrt(len(unit)))
    for _ in range(100):
        slope = unit @ a - 1 / a
        move = np.linalg.solve(unit + np.diag(a**-2), -slope)
        # The function is self-concordant: this step is safe from anywhere, and full steps are once it is short.
        decrement = np.sqrt(max(0.0, -slope @ move))
        a = a + (move if decrement < 0.25 else move / (1 + decrement))
        if decrement > 0.25:
            a = a * np.sqrt(len(unit) / (a @ unit @ a))  # the best point on its ray: a long way in one step
        if decrement < 1e-7:  # what is left is of the order of its square
            break
    return a / lengths


def nash(gramian: Array) -> Array:
    """The Nash bargaining solution among tasks (Navon et al. 2022), scaled to sum T.

    Its direction does not depend on the scale of any task. A task without gradient has no say and gets 0.
    """
    live, weights = _live(gramian), np.zeros(len(gramian))
    if not live.any():
        return weights + 1
    weights[live] = bargain(gramian[np.ix_(live, live)])
    return np.asarray(len(gramian) * weights / weights.sum())


def aligned(gramian: Array) -> Array:
    """Principal components of the gradients made equally long, as the shortest of them (Senushkin et al. 2023)."""
    values, vectors = np.linalg.eigh(gramian)
    live = values > RANK * values.max(initial=0.0)
    if not live.any():
        return np.ones(len(gramian))
    values, vectors = values[live], vectors[:, live]
    found: Array = np.sqrt(values.min()) * vectors @ ((vectors.T @ np.ones(len(gramian))) / np.sqrt(values))
    return found


def cagrad(gramian: Array, c: float) -> Array:
    """The best worst-off task within ``c |g0|`` of the mean gradient g0 (Liu et al. 2021, CAGrad), times T.

    The optimum is ``d = g0 + Jᵀu`` with u ≥ 0, ``|Jᵀu| = c |g0|`` and ``<g_t, d> >= level``, with equality where
    ``u_t > 0``. For a given level u is a non-negative least squares problem, and for given tasks with ``u_t > 0`` the
    level is the root of a quadratic equation; the two alternate, with bisection to fall back on. The result is divided
    by 1 + c, so that tasks that agree get their plain sum.
    """
    tasks, weights, live = len(gramian), np.ones(len(gramian)), _live(gramian)
    if not live.any():
        return weights
    # A task without gradient cannot be helped or hurt: it takes part in the mean only. The others' rows get length 1.
    lengths = np.sqrt(np.diag(gramian)[live])
    ones = lengths.max() / lengths
    unit = gramian[np.ix_(live, live)] / np.outer(lengths, lengths) + RIDGE * np.eye(int(live.sum()))
    mean = unit @ (1 / ones) / tasks
    radius = c * math.sqrt(float(mean @ (1 / ones)) / tasks)
    lower = np.linalg.cholesky(unit)
    low, high = float((mean / ones).min()), float(((mean + radius) / ones).min()) + 1e-3 * radius
    level, extra = _level(unit, mean, ones, radius, np.arange(len(unit))), np.zeros(len(unit))
    for _ in range(50):
        if not low < level < high:
            level = (low + high) / 2
        extra = nnls(lower.T, np.linalg.solve(lower, level * ones - mean))[0]
        length = float(np.sqrt(extra @ unit @ extra))
        if abs(length - radius) <= 1e-7 * radius or high - low <= 1e-12 * abs(high):
            break
        low, high = (level, high) if length < radius else (low, level)
        level = _level(unit, mean, ones, radius, np.flatnonzero(extra))
    weights[live] += tasks * extra * ones
    return weights / (1 + c)


def pcgrad(gramian: Array, orders: Sequence[npt.NDArray[np.int64]]) -> Array:
    """Sum of the gradients, each projected off those that it conflicts with, one after the other (Yu et al. 2020).

    Args:
        gramian: G.
        orders: For each task, the order in which it meets the others.
    """
    weights = np.zeros(len(gramian))
    for task, order in enumerate(orders):
        own = np.zeros(len(gramian))
        own[task] = 1.0
        for other in order:
            inner = own @ gramian[:, other]
            if other != task and inner < 0:
                own[other] -= inner / gramian[other, other]
        weights += own
    return weights


def _live(gramian: Array) -> npt.NDArray[np.bool_]:
    """Which tasks have a gradient at all; a small one is a gradient."""
    diagonal: Array = np.diag(gramian)
    return np.asarray(diagonal > 1e-24 * diagonal.max(initial=0.0))


def _scale(gramian: Array) -> float:
    return float(np.diag(gramian).mean())


def _root(gramian: Array) -> Array:
    """R with RᵀR = G."""
    values, vectors = np.linalg.eigh(gramian)
    root: Array = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return root


def _level(unit: Array, mean: Array, ones: Array, radius: float, chosen: npt.NDArray[np.intp]) -> float:
    """The level at which the equality of the chosen tasks makes their part as long as the radius; NaN for none."""
    if not len(chosen):
        return float("nan")
    inverse = np.asarray(np.linalg.inv(unit[np.ix_(chosen, chosen)]), dtype=np.float64)
    sides, part = ones[chosen], mean[chosen]
    a, b = float(sides @ inverse @ sides), float(sides @ inverse @ part)
    rest = float(part @ inverse @ part) - radius**2
    return (b + math.sqrt(max(0.0, b * b - a * rest))) / a
