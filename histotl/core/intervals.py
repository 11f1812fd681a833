"""Intervals by resampling patients: percentile bootstrap through weights.

A resample draws as many patients as there are, with replacement; what it means for a metric is a weight for every
patient: how often it was drawn. So nothing is copied or looped over: whatever is a sum over rows (confusion counts,
losses, calibration gaps) is one matrix product of weights and per-patient sums, and rankings take the weights after one
sort. Draw 0 has weight 1 for everybody: the real test set, which gives the estimate itself.

Patients and not rows are drawn because tiles or slides of one patient are alike: drawing rows gives intervals that are
too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CONFIDENCE = 0.95
_BLOCK = 1 << 18  # weights handled at a time; 2 MiB stays in the cache
_EXACT = 1 << 24  # whole numbers up to here are exact in single precision


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric on the real test set with its interval.

    Args:
        value: On the real test set, not the bootstrap's mean; NaN when undefined there.
        low: 2.5th percentile over the resamples.
        high: 97.5th percentile.
        resamples: Resamples on which the metric was defined; the others (a class missing) are left out. With fewer than
            half of them ``low`` and ``high`` are NaN.
    """

    value: float
    low: float
    high: float
    resamples: int

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON: NaN becomes None."""
        low, value, high = (None if np.isnan(x) else float(x) for x in (self.low, self.value, self.high))
        return {"value": value, "low": low, "high": high, "resamples": self.resamples}


@dataclass(frozen=True, kw_only=True, eq=False)
class Resamples:
    """Weights of all draws, and which unit each row belongs to. p units, n rows, b resamples.

    Args:
        unit: Index of each row's patient (n,).
        weights: (p, 1 + b) uint16; column 0 is 1 for all. Draw after draw in memory.
    """

    unit: Ints
    weights: np.ndarray[tuple[int, int], np.dtype[np.uint16]]

    @classmethod
    def draw(cls, unit: Ints, resamples: int, seed: int) -> Resamples:
        """Draw ``resamples`` times as many units as there are, each with the same chance.

        Args:
            unit: Index of each row's patient, 0 upwards without gaps (n,).
            resamples: b; 0 gives estimates without intervals.
            seed: Same seed, same draws.

        Raises:
            UsageError: No rows, or a negative number of resamples.
        """
        if not len(unit) or resamples < 0:
            raise UsageError(f"{resamples} resamples of {len(unit)} rows", hint="give at least one row and 0 resamples")
        n_units = int(unit.max()) + 1
        rng = np.random.default_rng(seed)
        draws = np.ones((1 + resamples, n_units), dtype=np.uint16)
        step = max(1, _BLOCK // n_units)
        for at in range(1, 1 + resamples, step):
            block = draws[at : at + step]
            # Every draw counts in places of its own, so that one call counts them all.
            drawn = rng.integers(0, n_units, block.shape) + np.arange(len(block))[:, None] * n_units
            block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
        return cls(unit=unit, weights=draws.T)

    @property
    def n_units(self) -> int:
        """Patients."""
        return len(self.weights)

    def sums(self, columns: Floats) -> Floats:
        """Weighted sums over rows for all draws, by one matrix product.

        Args:
            columns: What each row adds (n, m).

        Returns:
            (1 + b, m); row 0 is the real test set.
        """
        per_unit = np.zeros((self.n_units, columns.shape[1]))
        np.add.at(per_unit, self.unit, columns)
        return self.weights.T.astype(np.float64) @ per_unit

    def confusion(self, truth: Ints, predicted: Ints, n_classes: int) -> Floats:
        """Confusion matrices of all draws (1 + b, k, k) from per-patient counts."""
        cells = n_classes**2
        cell = self.unit * cells + truth * n_classes + predicted
        counts = np.bincount(cell, minlength=self.n_units * cells).reshape(self.n_units, cells)
        # No sum is larger than if all that is drawn were the patient with most rows.
        kind = np.float32 if self.n_units * counts.sum(axis=1).max() < _EXACT else np.float64
        found: Floats = (self.weights.T.astype(kind) @ counts.astype(kind)).astype(np.float64)
        return found.reshape(-1, n_classes, n_classes)

    def mean(self, values: Floats) -> Floats:
        """Mean of one value a row (n,) for all draws (1 + b,)."""
        sums = self.sums(np.stack([values, np.ones(len(values))], axis=1))
        return np.asarray(sums[:, 0] / sums[:, 1])

    def rows(self, metric: Callable[[Floats], Floats]) -> Floats:
        """A metric that needs the weight of every row, for all draws (1 + b,).

        Args:
            metric: Takes weights (n, c) and answers (c,).
        """
        step = max(1, _BLOCK // len(self.unit))
        blocks = (self.weights[:, at : at + step] for at in range(0, self.weights.shape[1], step))
        return np.concatenate([metric(block.astype(np.float64, order="C")[self.unit]) for block in blocks])


def estimate(draws: Floats) -> Estimate:
    """Estimate from draw 0 and percentile interval from the others (1 + b,)."""
    value, resampled = float(draws[0]), draws[1:]
    used = resampled[~np.isnan(resampled)]
    if np.isnan(value) or len(used) == 0 or 2 * len(used) < len(resampled):
        return Estimate(value=value, low=np.nan, high=np.nan, resamples=len(used))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(used, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), resamples=len(used))
