"""Train, val and test, or folds, by patient, with every class spread as the shares say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.learn.labels import hard, known_rows
from histotl.learn.objective import Targets
from histotl.learn.table import SPLITS
from histotl.learn.task import Task

Indices = npt.NDArray[np.int64]

REGRESSION_BINS = 4
"""Numbers are spread by quarters of their range of ranks."""


def split_patients(
    patients: Sequence[str],
    tasks: Sequence[Task],
    targets: Targets,
    *,
    shares: Sequence[float],
    seed: int,
    groups: Indices | None = None,
) -> list[str]:
    """Split of each case, all cases of a patient alike.

    Patients with the rarest labels are placed first, each where its labels are most wanted (iterative stratification,
    Sechidis et al. 2011, by patient).

    Args:
        patients: Patient of each of n cases.
        tasks: Whose labels are spread.
        targets: Task name -> (n,) or (n, c).
        shares: Of train, val and test; sum 1.
        seed: Breaks ties.
        groups: int64 (n,): number of the data set of each case, spread as classes are; None for one.
    """
    return [SPLITS[part] for part in _parts(patients, tasks, targets, shares=shares, seed=seed, groups=groups)]


def fold_patients(
    patients: Sequence[str],
    tasks: Sequence[Task],
    targets: Targets,
    *,
    folds: int,
    seed: int,
    groups: Indices | None = None,
) -> npt.NDArray[np.int64]:
    """Fold of each case int64 (n,), 0 to ``folds`` - 1, spread as :func:`split_patients` spreads splits.

    Raises:
        UsageError: Fewer patients than folds, or fewer than three folds: one is tested, one validates.
    """
    found = len(set(patients))
    if folds < 3 or found < folds:
        cure = f"give 3 to {found} folds" if found >= 3 else "label more patients: three are the least"
        raise UsageError(f"{folds} folds of {found} patients", hint=cure)
    return _parts(patients, tasks, targets, shares=[1 / folds] * folds, seed=seed, groups=groups)


def _parts(
    patients: Sequence[str],
    tasks: Sequence[Task],
    targets: Targets,
    *,
    shares: Sequence[float],
    seed: int,
    groups: Indices | None,
) -> npt.NDArray[np.int64]:
    """Part of each case, an index into ``shares``."""
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    of_groups = [] if groups is None else [np.eye(int(groups.max()) + 1)[groups]]
    labels = np.concatenate([*(_indicator(task, targets[task.name]) for task in tasks), *of_groups], axis=1)
    table = np.zeros((len(names), labels.shape[1] + 1))
    np.add.at(table[:, :-1], place, labels)
    # The last column keeps the number of cases in proportion when labels do not decide.
    table[:, -1] = np.bincount(place, minlength=len(names))
    used = np.flatnonzero(np.asarray(shares) > 0)
    wanted = np.outer(np.asarray(shares)[used], table.sum(axis=0))
    rarity = (table[:, :-1] / np.maximum(table[:, :-1].sum(axis=0), 1)).max(axis=1, initial=0)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    order = order[np.argsort(-rarity[order], kind="stable")]
    total, full = np.maximum(table.sum(axis=0), 1), np.maximum(wanted, 1e-9)
    chosen = np.zeros(len(names), dtype=np.int64)
    for patient in order:
        # The split whose own share of this patient's labels is the least filled; rare labels weigh most.
        best = int(np.argmax((wanted / full) @ (table[patient] / total)))
        chosen[patient] = used[best]
        wanted[best] -= table[patient]
    return np.asarray(chosen[place], dtype=np.int64)


def _indicator(task: Task, target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One column a class or label (or quarter of the numbers; with and without the event), 1 where a case has it."""
    known = known_rows(target)
    if task.nature.answers == "labels":
        return np.nan_to_num(target)
    if task.is_classification:
        n, index = task.n_classes, np.nan_to_num(hard(target)).astype(np.int64)
    elif task.event:
        n, index = 2, np.nan_to_num(target[:, 1]).astype(np.int64)
    else:
        edges = np.quantile(target[known], np.arange(1, REGRESSION_BINS) / REGRESSION_BINS) if known.any() else [0.0]
        n, index = REGRESSION_BINS, np.digitize(np.where(known, target, 0), edges)
    return np.asarray(np.eye(n)[index] * known[:, None])
