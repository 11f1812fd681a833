"""Percentiles of whole numbers from how often each occurs: one pass over the pixels and no sorting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def percentiles(counts: npt.NDArray[np.integer], shares: Sequence[float]) -> list[float]:
    """The same as :func:`numpy.percentile` with linear interpolation.

    Args:
        counts: (k,): how often 0, 1, ... k - 1 occur; at least one of them does.
        shares: Percentiles, 0 to 100.
    """
    upto = np.cumsum(counts)
    rank = np.asarray(shares, np.float64) / 100 * (int(upto[-1]) - 1)
    below = np.floor(rank)
    low, high = (np.searchsorted(upto, place, side="right") for place in (below, np.ceil(rank)))
    found: list[float] = (low + (high - low) * (rank - below)).tolist()
    return found


def tally(values: npt.NDArray[np.integer], size: int = 256) -> npt.NDArray[np.intp]:
    """How often 0, 1, ... ``size`` - 1 occur."""
    return np.bincount(values.ravel(), minlength=size)
