"""Gradients of like length, longer for tasks that lag behind (Chen et al., ICML 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.balancing.base import Setting


@register("balancing", "gradnorm")
@dataclass(frozen=True, kw_only=True)
class GradNorm:
    """Learns weights that bring ``weight * |gradient|`` to ``mean * r^alpha``; r is the task's relative loss.

    Lengths are roots of the Gramian's diagonal, so no second derivative is needed. Weights sum to the number of tasks.

    Args:
        alpha: How much longer the gradient of a task is made that lags behind.
        rate: Step of the weights (Adam).
    """

    alpha: float = 1.5
    rate: float = 0.025

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < math.inf and 0 < self.rate < 1):
            raise UsageError(f"gradnorm's alpha and rate are {self.alpha}, {self.rate}", hint="give such as 1.5, 0.025")

    def start(self, setting: Setting) -> GradNormRule:
        """Even weights."""
        return GradNormRule(self, setting)


class GradNormRule:
    """Keeps the weights and the first losses of one run."""

    def __init__(self, made_by: GradNorm, setting: Setting) -> None:
        self._alpha, self._rate, self._step = made_by.alpha, made_by.rate, 0
        self._first: dict[str, float] = {}
        self.learnt = dict.fromkeys(setting.names, 1.0)
        self._mean, self._square = dict.fromkeys(setting.names, 0.0), dict.fromkeys(setting.names, 0.0)

    def weights(self, gramian: npt.NDArray[np.float64], losses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """See :class:`histotl.learn.balancing.base.GramianRule`."""
        names = list(losses)
        found = np.array([self.learnt[name] for name in names])
        found = found * len(names) / found.sum()
        lengths = np.sqrt(np.diag(gramian))
        for name, loss in losses.items():
            self._first.setdefault(name, loss)
        left = np.array([losses[n] / self._first[n] if self._first[n] > 0 else 1.0 for n in names])
        relative = np.maximum(left, 0) / max(float(left.mean()), 1e-12)
        target = (found * lengths).mean() * relative**self._alpha
        self._move(names, lengths * np.sign(found * lengths - target))
        return np.asarray(found)

    def _move(self, names: list[str], slopes: npt.NDArray[np.float64]) -> None:
        """One step of Adam on the weights of these tasks, then all weights are scaled to their number again."""
        self._step += 1
        for name, slope in zip(names, slopes, strict=True):
            self._mean[name] = 0.9 * self._mean[name] + 0.1 * slope
            self._square[name] = 0.999 * self._square[name] + 0.001 * slope**2
            mean, square = self._mean[name] / (1 - 0.9**self._step), self._square[name] / (1 - 0.999**self._step)
            self.learnt[name] = max(1e-3, self.learnt[name] - self._rate * mean / (math.sqrt(square) + 1e-8))
        scale = len(self.learnt) / sum(self.learnt.values())
        self.learnt = {name: weight * scale for name, weight in self.learnt.items()}
