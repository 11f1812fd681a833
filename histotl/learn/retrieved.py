"""What retrieval found, as a table and in figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.intervals import Estimate, estimate
from histotl.learn.compare import draws_of
from histotl.learn.neighbours import Index, Near, Queries
from histotl.learn.ranked import average_precision_at, majority, recall_at
from histotl.learn.task import Task

Floats = npt.NDArray[np.float64]


class Found:
    """The neighbours of all queries, block after block.

    Args:
        task: Whose neighbours these are.
        index: What the model keeps.
    """

    def __init__(self, task: Task, index: Index) -> None:
        self._task, self._index = task, index
        self._parts: list[tuple[Queries, Near, Floats]] = []

    def add(self, queries: Queries, near: Near, truth: Floats) -> None:
        """One block, with the class index of each query, NaN where it is missing; vectors are not kept."""
        self._parts.append((replace(queries, embedded=()), near, truth))

    @property
    def queries(self) -> int:
        """Their number."""
        return sum(len(queries) for queries, _, _ in self._parts)

    @property
    def unknown_patients(self) -> int:
        """Queries without a patient."""
        return sum(not patient for queries, _, _ in self._parts for patient in queries.patients)

    def table(self) -> pd.DataFrame:
        """One row a neighbour; see :mod:`histotl.learn.retrieval`."""
        return pd.concat([self._rows(*part) for part in self._parts], ignore_index=True)

    def measure(self, k: int, *, seed: int) -> tuple[dict[str, Estimate], int]:
        """Metrics over the labelled queries for which something relevant could have been found, and their number."""
        truth = np.concatenate([part[2] for part in self._parts])
        classes = np.concatenate([near.classes for _, near, _ in self._parts])
        candidates = np.concatenate([near.candidates for _, near, _ in self._parts])
        rows = np.flatnonzero(~np.isnan(truth))
        rows = rows[candidates[rows, truth[rows].astype(np.int64)] > 0]
        if not len(rows):
            return {}, 0
        index = truth[rows].astype(np.int64)
        relevant = classes[rows] == index[:, None]
        owners = [p or n for each, _, _ in self._parts for p, n in zip(each.patients, each.ids, strict=True)]
        draws = draws_of([owners[row] for row in rows.tolist()], seed=seed)
        values = {
            f"recall@{k}": recall_at(relevant),
            f"map@{k}": average_precision_at(relevant, candidates[rows, index]),
            f"knn_accuracy@{k}": (majority(classes[rows], self._task.n_classes) == index).astype(np.float64),
        }
        return {name: estimate(draws.mean(each)) for name, each in values.items()}, len(rows)

    def _rows(self, queries: Queries, near: Near, truth: Floats) -> pd.DataFrame:
        query, rank = np.nonzero(near.rows >= 0)
        rows = near.rows[query, rank]
        case = self._index.case[rows].tolist()
        classes, missing = np.array(self._task.classes, dtype=object), np.isnan(truth)
        labels = np.where(missing, "", classes[np.where(missing, 0, truth).astype(np.int64)])
        columns: dict[str, object] = {
            "query": [queries.ids[i] for i in query.tolist()],
            "query_class": labels[query],
            "rank": rank + 1,
            "id": [self._index.ids[i] for i in case],
            "patient": [self._index.patients[i] for i in case],
            "class": classes[self._index.classes[rows]],
            "similarity": near.similarity[query, rank],
        }
        if queries.corner is not None:
            both = (("query_x", "query_y"), queries.corner[query]), (("x", "y"), self._index.corner[rows])
            columns |= {name: corners[:, i] for names, corners in both for i, name in enumerate(names)}
        return pd.DataFrame(columns)
