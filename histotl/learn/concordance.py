"""How well risks order times to an event, with rows that may end without one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 512
"""Rows of the matrix of pairs in memory at a time."""


def concordance(
    risk: Floats, time: Floats, event: Mask, weights: Floats | None = None, *, importance: Floats | None = None
) -> Floats:
    """Harrell's C: of the pairs whose order is known, the share where the earlier event has the higher risk.

    The order of two rows is known where the one with the shorter time had the event; at equal times, where one of them
    had it and the other had not. Equal risks count as half.

    Args:
        risk: Higher means an earlier event (n,).
        time: Of the event or the last look (n,).
        event: Whether it was seen (n,).
        weights: (n,) or (n, b); a pair counts as the product of its rows' weights. None counts every pair once.
        importance: What the pairs of each earlier row count besides (n,): :func:`censoring_importance` makes it Uno's
            C.

    Returns:
        A scalar or (b,); NaN without a pair of known order.
    """
    weights = np.ones(len(risk)) if weights is None else weights
    importance = np.ones(len(risk)) if importance is None else importance
    flat = weights.reshape(len(risk), -1)
    right, pairs = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
    for start in range(0, len(risk), _BLOCK):
        rows = slice(start, start + _BLOCK)
        later = (time[rows, None] < time) | ((time[rows, None] == time) & ~event)
        known = (event[rows, None] & later) * importance[rows, None]
        higher = (risk[rows, None] > risk) + 0.5 * (risk[rows, None] == risk)
        right += (flat[rows] * ((known * higher) @ flat)).sum(axis=0)
        pairs += (flat[rows] * (known @ flat)).sum(axis=0)
    found = np.where(pairs > 0, right / np.where(pairs > 0, pairs, 1.0), np.nan)
    return np.asarray(found.reshape(weights.shape[1:]))


def kaplan_meier(time: Floats, event: Mask) -> tuple[Floats, Floats]:
    """Times at which rows end, and the share (Kaplan and Meier 1958) that is without the event just after each."""
    at, place = np.unique(time, return_inverse=True)
    ended, dead = np.bincount(place), np.bincount(place, weights=event.astype(np.float64))
    held = np.cumsum(ended[::-1])[::-1]
    return at, np.asarray(np.cumprod(1 - dead / held), dtype=np.float64)


def censoring_importance(time: Floats, event: Mask) -> Floats:
    """1 / G(t-)² of each row (n,), G the chance to be still under observation (Uno et al. 2011).

    Pairs of early events are not overcounted then because later ones were more often out of sight.
    """
    at, kept = kaplan_meier(time, ~event)
    before = np.concatenate([[1.0], kept])[np.searchsorted(at, time, side="left")]
    return np.where(before > 0, 1 / np.where(before > 0, before, 1.0) ** 2, 0.0)
