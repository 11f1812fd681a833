"""Whether a stated probability is the share that comes true: reliability bins and the expected calibration error.

Bins are of equal mass (Nguyen & O'Connor, 2015): the rows are sorted by the largest probability and cut
into 15 parts of the same number of rows. Equal-width bins would put nearly all rows of a confident model into one.
Equal probabilities stay in one bin. The cuts are made once on the real test set; resamples reuse them.
The error keeps its 15 bins on every set, so that it can be compared; the drawn curve takes fewer in small sets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from histotl.evaluate.metrics import Floats, Ints, divide

N_BINS = 15
CURVE_ROWS = 10
"""Least rows of a bin of the drawn curve; a share right of fewer says nothing."""


def equal_mass_bins(confidence: Floats, n_bins: int = N_BINS) -> Ints:
    """Bin of each row (n,), 0 upwards without gaps; at most ``n_bins`` bins, fewer when there are few or equal rows."""
    ranked = np.sort(confidence)
    at = np.arange(1, n_bins) * len(ranked) // n_bins
    raw = np.searchsorted(ranked[at], confidence, side="right")
    return np.unique(raw, return_inverse=True)[1].astype(np.int64)


def curve_bins(confidence: Floats) -> Ints:
    """Bins of a reliability curve (n,): as for the ECE, but fewer where they would hold under ``CURVE_ROWS`` rows."""
    return equal_mass_bins(confidence, min(N_BINS, max(1, len(confidence) // CURVE_ROWS)))


def bin_gaps(confidence: Floats, correct: npt.NDArray[np.bool_], bins: Ints) -> Floats:
    """What each row adds to the gaps: (confidence - correct) in the column of its bin, 0 elsewhere (n, bins)."""
    columns = np.zeros((len(confidence), int(bins.max()) + 1))
    columns[np.arange(len(confidence)), bins] = confidence - correct
    return columns


def ece_of_gaps(gaps: Floats, total: Floats) -> Floats:
    """Expected calibration error from summed gaps: (…, bins) and the summed weight (…), to (…)."""
    return divide(np.abs(gaps).sum(axis=-1), total)


def expected_calibration_error(
    confidence: Floats, correct: npt.NDArray[np.bool_], bins: Ints | None = None, weights: Floats | None = None
) -> Floats:
    """Mean over rows of |mean confidence - share correct| of the row's bin, 0 to 1.

    Args:
        confidence: Largest probability (n,).
        correct: Whether the most probable class is the true one (n,).
        bins: Bin of each row; :func:`equal_mass_bins` of ``confidence`` when None.
        weights: (n,) or (n, b).

    Returns:
        A scalar or (b,).
    """
    bins = equal_mass_bins(confidence) if bins is None else bins
    weights = np.ones(len(confidence)) if weights is None else weights
    gaps = bin_gaps(confidence, correct, bins)
    return ece_of_gaps(weights.T @ gaps, weights.sum(axis=0))
