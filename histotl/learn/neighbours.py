"""The training rows that a model keeps, searched for those nearest to new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import UsageError
from histotl.learn.bags import Packed
from histotl.learn.finishing import reshaped
from histotl.learn.model import Model
from histotl.learn.recall import Recall
from histotl.learn.task import Task

TRAIN_CASES = "train_cases"
"""Where the description of a model names the cases that it was trained on."""

UNKNOWN = -1
"""Place of what is not among the training cases."""

CELLS = 1 << 22
"""Queries times kept rows that are compared at a time."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Queries:
    """Rows whose neighbours are wanted. q rows.

    Args:
        embedded: One float (q, w) a member.
        ids: Name of the case that each row is of.
        patients: Patient of each row, empty where not known.
        corner: int64 (q, 2) level-0 corner of each row that is a tile of a slide; None for rows that are cases.
    """

    embedded: Sequence[torch.Tensor]
    ids: Sequence[str]
    patients: Sequence[str]
    corner: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class Near:
    """The nearest kept rows of each query, nearest first. q queries, k neighbours.

    Args:
        rows: int64 (q, k) places among the kept rows; -1 where there are no more that count.
        similarity: float64 (q, k): cosine, mean over the members; NaN beside -1.
        classes: int64 (q, k) class of each; -1 beside -1.
        candidates: int64 (q, c): kept rows of each class that could have been among them.
    """

    rows: Ints
    similarity: Floats
    classes: Ints
    candidates: Ints


class Index:
    """What a model keeps for one task.

    Args:
        model: Trained, with a task of kind ``embedding``, or of another kind that keeps rows.
        task: The task.

    Raises:
        UsageError: The model keeps no rows for the task.
    """

    def __init__(self, model: Model, task: Task) -> None:
        kept = [member.recall(task.name) for member in model.members]
        self._recalls: list[Recall] = [found for found in kept if found is not None]
        if len(self._recalls) < len(kept):
            fact = f"task {task.name!r} is {task.kind}, which keeps no training rows to retrieve"
            raise UsageError(fact, hint=f"train it as {task.name}: embedding(column={task.column!r})")
        self._task, self._device = task.name, model.members[0].mean.device
        bare = replace(model.architecture, recalls=())
        members = tuple(reshaped(member, bare).to(self._device) for member in model.members)
        self._bare = replace(model, members=members, architecture=bare)
        first = self._recalls[0]
        self.case, self.corner = (np.asarray(each.cpu().numpy()) for each in (first.case, first.corner))
        self.votes = np.asarray(first.votes.double().cpu().numpy())
        self.classes: Ints = self.votes.argmax(axis=1).astype(np.int64)
        names = model.extra.get(TRAIN_CASES)
        if isinstance(names, dict):
            self.ids, self.patients = tuple(names["ids"]), tuple(names["patients"])
        else:
            # A model that was trained in memory knows no names: rows are called by their numbers.
            self.ids = tuple(str(i) for i in range(int(self.case.max()) + 1))
            self.patients = ("",) * len(self.ids)
        self.patient_of = dict(zip(self.ids, self.patients, strict=True))
        self._place = {name: i for i, name in enumerate(self.ids)} if isinstance(names, dict) else {}
        self._number = {name: i for i, name in enumerate(sorted(set(self.patients) - {""}))}
        self._owner = np.array([self._number.get(name, UNKNOWN) for name in self.patients], dtype=np.int64)[self.case]

    def __len__(self) -> int:
        return len(self.case)

    def embedded(self, packed: Packed) -> list[torch.Tensor]:
        """Vectors of packed bags (of every tile, where the model answers for tiles), one float (q, w) a member."""
        found = self._bare.outputs(packed)[0][self._task]
        return [kept.embedded(outputs.to(self._device)) for kept, outputs in zip(self._recalls, found, strict=True)]

    def nearest(self, queries: Queries, k: int, *, other_patients: bool = True) -> Near:
        """Neighbours of each query; never the query itself.

        Args:
            queries: From :meth:`embedded`.
            k: How many.
            other_patients: Leave out what is of the query's own patient, where that is known.
        """
        block = max(1, CELLS // len(self))
        parts = [
            self._near(queries, np.arange(at, min(at + block, len(queries))), k, other_patients=other_patients)
            for at in range(0, len(queries), block)
        ]
        rows, similarity, classes, candidates = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Near(rows=rows, similarity=similarity, classes=classes, candidates=candidates)

    def _near(self, queries: Queries, some: Ints, k: int, *, other_patients: bool) -> tuple[Ints, Floats, Ints, Ints]:
        chosen = torch.from_numpy(some).to(self._device)
        each = zip(self._recalls, queries.embedded, strict=True)
        cosine = torch.stack([kept.cosines(part[chosen]).double() for kept, part in each]).mean(dim=0).cpu().numpy()
        hidden = self._hidden(queries, some, other_patients=other_patients)
        cosine[hidden] = -np.inf
        order = _largest(cosine, k)
        found = np.take_along_axis(cosine, order, axis=1)
        there = np.isfinite(found)
        one_hot = np.eye(self.votes.shape[1])[self.classes]
        return (
            np.where(there, order, UNKNOWN),
            np.where(there, found, np.nan),
            np.where(there, self.classes[order], UNKNOWN),
            ((~hidden).astype(np.float64) @ one_hot).astype(np.int64),
        )

    def _hidden(self, queries: Queries, some: Ints, *, other_patients: bool) -> npt.NDArray[np.bool_]:
        """Which kept rows (b, N) are no neighbours of some queries."""
        own = np.array([self._place.get(queries.ids[i], UNKNOWN) for i in some.tolist()], dtype=np.int64)
        hidden: npt.NDArray[np.bool_] = own[:, None] == self.case
        if queries.corner is not None:
            hidden &= (queries.corner[some][:, None] == self.corner).all(axis=2)
        if other_patients:
            mine = np.array([self._number.get(queries.patients[i], UNKNOWN) for i in some.tolist()], dtype=np.int64)
            hidden |= (mine[:, None] == self._owner) & (mine[:, None] != UNKNOWN)
        return hidden


def _largest(values: Floats, k: int) -> Ints:
    """Places (b, k) of the k largest values of each row, largest first, equal ones in their own order."""
    k = min(k, values.shape[1])
    found = []
    for row, least in zip(values, np.partition(values, -k, axis=1)[:, -k], strict=True):
        some = np.flatnonzero(row >= least)
        found.append(some[np.argsort(-row[some], kind="stable")][:k])
    return np.stack(found).astype(np.int64)
