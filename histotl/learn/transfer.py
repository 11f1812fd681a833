"""Which tasks help each other: affinity during training, and groups made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import UsageError
from histotl.learn._gradients import Gradients, gradients, gramian, moved, shared
from histotl.learn._trainer import Hooks
from histotl.learn.batch import Batch
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.task import Task

MOST_TASKS = 8
"""Of this many there are 4,140 ways to make groups; of twice as many, ten thousand million."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Affinity:
    """What a step for one task does to the loss of another.

    Args:
        names: The tasks.
        matrix: float64 (t, t): entry (i, j) is the mean share by which a step down the gradient of task i on the shared
            weights lowers the loss of task j; negative where it raises it. NaN for two tasks whose labels never met in
            a step.
        cosines: float64 (t, t): mean cosine of the angle between their gradients.
        samples: int64 (t, t): steps that were looked at.
    """

    names: tuple[str, ...]
    matrix: npt.NDArray[np.float64]
    cosines: npt.NDArray[np.float64]
    samples: npt.NDArray[np.int64]


def task_affinity(
    train: Labelled,
    val: Labelled,
    *,
    tasks: Sequence[Task],
    config: TrainConfig,
    aggregator: str = "",
    method: Literal["lookahead", "gradient"] = "lookahead",
    every: int = 10,
    step: float = 0.01,
) -> Affinity:
    """Train all tasks together once and measure at every tenth step what each would do to the others.

    After Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning" (NeurIPS 2021). Weights that at
    least two tasks depend on are shared: with the sharing ``none`` there are none but an aggregator's.

    Args:
        train: What is learnt from.
        val: As for :func:`histotl.learn.fit.fit`.
        tasks: At least two.
        config: Settings of the one run: one member, at the first of its learning rates.
        aggregator: Spec of the aggregator; empty when every bag is one row.
        method: ``lookahead`` makes each task's step, looks, and takes it back; ``gradient`` is its first-order form,
            ``step <g_i, g_j> / loss_j``, which costs no more passes.
        every: Steps of training between two looks.
        step: Length of the step looked ahead, in gradients of the comparable losses.

    Raises:
        UsageError: Fewer than two tasks, or a setting is out of range.
    """
    if len(tasks) < 2:
        raise UsageError(f"affinity of {len(tasks)} task", hint="give two or more")
    if every < 1 or not 0 < step < float("inf"):
        raise UsageError(
            f"every is {every} and step is {step}", hint="give 1 or more, and a positive length such as 0.01"
        )
    watcher = _Watcher(tuple(task.name for task in tasks), method, every, step)
    single = replace(config, members=1, learning_rates=config.learning_rates[:1])
    fit(train, val, tasks=tasks, config=single, aggregator=aggregator, hooks=Hooks(watch=watcher))
    return watcher.result()


class _Watcher:
    """Sums over the steps of one run."""

    def __init__(self, names: tuple[str, ...], method: str, every: int, step: float) -> None:
        self._names, self._method, self._every, self._step = names, method, every, step
        self._calls, n = 0, len(names)
        self._sum, self._cosine, self._count = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n), dtype=np.int64)

    def __call__(self, batch: Batch) -> None:
        self._calls += 1
        if (self._calls - 1) % self._every:
            return
        parameters = [p for p in batch.network.parameters() if p.requires_grad]
        losses = batch.losses(batch.run())
        each = {name: gradients(loss, parameters) for name, loss in losses.items()}
        common = shared(each)
        rows = [[g for g, is_common in zip(row, common, strict=True) if is_common] for row in each.values()]
        inner, now = gramian(rows), np.array([float(loss.detach()) for loss in losses.values()])
        if self._method == "gradient":
            found = self._step * inner / now
        else:
            found = 1 - np.stack([self._ahead(batch, parameters, row, common) for row in each.values()]) / now
        place = np.ix_(*(2 * [[self._names.index(name) for name in losses]]))
        lengths = np.sqrt(np.maximum(np.diag(inner), 1e-300))
        self._sum[place] += found
        self._cosine[place] += inner / np.outer(lengths, lengths)
        self._count[place] += 1

    def _ahead(
        self, batch: Batch, parameters: Sequence[torch.Tensor], slopes: Gradients, common: list[bool]
    ) -> npt.NDArray[np.float64]:
        """Losses after one task's step on the shared weights."""
        chosen = (g if is_common else None for g, is_common in zip(slopes, common, strict=True))
        by = [None if g is None else -self._step * g for g in chosen]
        with moved(parameters, by):
            return np.array([float(loss) for loss in batch.again().values()])

    def result(self) -> Affinity:
        """Means; NaN where there is nothing."""
        with np.errstate(invalid="ignore"):
            return Affinity(
                names=self._names,
                matrix=self._sum / self._count,
                cosines=self._cosine / self._count,
                samples=self._count.copy(),
            )


def group_tasks(affinity: Affinity, max_groups: int) -> tuple[tuple[str, ...], ...]:
    """Split the tasks into at most so many groups, each to be trained as one network, for the most help within groups.

    Every way to do it is looked at. A group is worth the sum over its tasks of the mean affinity from the group's other
    tasks; a task alone neither helps nor is hurt and is worth 0. Of equally good ways one with fewer groups is taken.

    Args:
        affinity: From :func:`task_affinity`; pairs whose labels never met count 0.
        max_groups: At least 1.

    Returns:
        Names of the tasks of each group, in their order.

    Raises:
        UsageError: More than eight tasks, or no group is allowed.
    """
    if max_groups < 1:
        raise UsageError(f"max_groups is {max_groups}", hint="give 1 or more")
    if len(affinity.names) > MOST_TASKS:
        fact = f"{len(affinity.names)} tasks have too many groupings to look at them all"
        raise UsageError(fact, hint=f"group {MOST_TASKS} tasks or fewer at a time")
    matrix = np.nan_to_num(affinity.matrix)
    best = max(_partitions(len(affinity.names), max_groups), key=lambda groups: (_worth(matrix, groups), -len(groups)))
    return tuple(tuple(affinity.names[i] for i in group) for group in best)


def _partitions(n: int, most: int) -> Iterator[list[list[int]]]:
    """All ways to split 0 … n - 1 into at most ``most`` groups."""
    if not n:
        yield []
        return
    for groups in _partitions(n - 1, most):
        for place in range(len(groups)):
            yield [[*group, n - 1] if i == place else group for i, group in enumerate(groups)]
        if len(groups) < most:
            yield [*groups, [n - 1]]


def _worth(matrix: npt.NDArray[np.float64], groups: list[list[int]]) -> float:
    total = 0.0
    for group in groups:
        inner = matrix[np.ix_(group, group)]
        total += float(inner.sum() - np.trace(inner)) / max(1, len(group) - 1)
    return total
