"""How good retrieved lists are. q queries with k neighbours each, nearest first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def recall_at(relevant: Flags) -> Floats:
    """1 for a query with a relevant neighbour among its k, else 0 (q,): recall@k of metric learning.

    The definition of Jégou et al. 2011 and Oh Song et al. 2016; it is not the share of all relevant rows found.

    Args:
        relevant: (q, k); False where a list is shorter.
    """
    return np.asarray(relevant.any(axis=1), dtype=np.float64)


def average_precision_at(relevant: Flags, total: Ints) -> Floats:
    """Mean precision at the places of relevant neighbours (q,): AP@k = sum_i P(i) rel(i) / min(k, total).

    Args:
        relevant: (q, k); False where a list is shorter.
        total: Relevant rows that could have been found (q,), 1 or more.
    """
    k = relevant.shape[1]
    precision = relevant.cumsum(axis=1) / np.arange(1, k + 1)
    return np.asarray((precision * relevant).sum(axis=1) / np.minimum(k, total))


def majority(classes: Ints, n_classes: int) -> Ints:
    """Class of most neighbours (q,); of a tie, the one whose first neighbour is nearer. -1 for an empty list.

    Args:
        classes: (q, k) class of each neighbour, -1 where a list is shorter.
        n_classes: c.
    """
    of_class = classes[:, :, None] == np.arange(n_classes)
    votes, k = of_class.sum(axis=1), classes.shape[1]
    first = np.where(of_class.any(axis=1), of_class.argmax(axis=1), k)
    best = (votes * (k + 1) - first).argmax(axis=1)
    return np.where((classes >= 0).any(axis=1), best, -1).astype(np.int64)
