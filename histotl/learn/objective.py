"""The joint loss: each task over its labelled rows, class weights, and units that can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import TableError
from histotl.core.registry import create
from histotl.learn.config import ClassBalance
from histotl.learn.heads.base import Head
from histotl.learn.task import Task

Targets = Mapping[str, npt.NDArray[np.float64]]
"""Task name -> class indices or numbers (B,), NaN where the label is missing."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What training labels say about one task.

    Args:
        counts: Labelled training rows of each class; one number for regression.
        class_weight: Weight of each class in the loss, sum over rows = number of rows; empty for none.
        prior_loss: Loss of the constant predictor, the unit of the task's loss.
        mean: Of the training labels (regression), else 0.
        std: Of the training labels (regression), else 1.
    """

    counts: tuple[int, ...]
    class_weight: tuple[float, ...] = ()
    prior_loss: float = 1.0
    mean: float = 0.0
    std: float = 1.0


class Objective:
    """Losses of all tasks on outputs of a network.

    A row without a label of a task is dropped before that task's loss, so it counts exactly as if it were not there.

    Args:
        tasks: What is predicted.
        targets: Training labels.
        class_balance: ``balanced`` or ``none``.

    Raises:
        TableError: A task has no labelled row, or all its numbers are equal.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        targets: Targets,
        *,
        class_balance: ClassBalance = "balanced",
    ) -> None:
        self.tasks = tuple(tasks)
        self.heads = {task.name: cast("Head", create("head", task.kind)) for task in tasks}
        self.facts = {
            task.name: _facts(task, targets[task.name], self.heads[task.name], class_balance) for task in tasks
        }
        self._weights = {
            name: torch.tensor(fact.class_weight, dtype=torch.float32) if fact.class_weight else None
            for name, fact in self.facts.items()
        }
        self.priors = {task.name: self.facts[task.name].prior_loss / task.weight for task in tasks}

    def to(self, device: torch.device) -> Objective:
        """Move the class weights."""
        self._weights = {name: None if w is None else w.to(device) for name, w in self._weights.items()}
        return self

    def n_outputs(self) -> tuple[tuple[str, int], ...]:
        """(task name, outputs of its linear layer) of every task."""
        return tuple((task.name, self.heads[task.name].n_outputs(task.n_classes)) for task in self.tasks)

    def tensor(self, targets: Targets) -> torch.Tensor:
        """Targets float32 (B, t), numbers standardised, NaN where missing."""
        columns = [(targets[t.name] - self.facts[t.name].mean) / self.facts[t.name].std for t in self.tasks]
        return torch.tensor(np.stack(columns, axis=1), dtype=torch.float32)

    def losses(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean loss of each task over its labelled rows; tasks without any are left out.

        Args:
            outputs: Task name -> float (B, o).
            targets: From :meth:`tensor`.
        """
        found: dict[str, torch.Tensor] = {}
        for column, task in enumerate(self.tasks):
            target = targets[:, column]
            labelled = torch.nonzero(~torch.isnan(target))[:, 0]
            if len(labelled):
                known = target[labelled]
                known = known.long() if task.is_classification else known
                weight = self._weights[task.name]
                rows = self.heads[task.name].loss(outputs[task.name][labelled], known, weight)
                found[task.name] = rows.mean()
        return found

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the losses in units of their constant predictors, by which checkpoints are compared."""
        return torch.stack([loss / self.priors[name] for name, loss in losses.items()]).sum()

    def judge(self, targets: torch.Tensor) -> Labels:
        """The labels of some bags, for parts of the network with losses of their own."""
        return Labels(self, targets)


class Labels:
    """The labels of B bags; a :class:`histotl.learn.aggregators.base.Judge`.

    Args:
        objective: Whose tasks.
        targets: From :meth:`Objective.tensor`.
    """

    def __init__(self, objective: Objective, targets: torch.Tensor) -> None:
        self._objective, self._targets = objective, targets

    def loss(self, outputs: Mapping[str, torch.Tensor], owner: torch.Tensor | None = None) -> torch.Tensor:
        """Joint loss of answers (P, o), where row p answers for bag ``owner[p]``; 0 where none is labelled."""
        losses = self._objective.losses(outputs, self._targets if owner is None else self._targets[owner])
        return self._objective.total(losses) if losses else self._targets.new_zeros(())

    def classes(self, task: str) -> torch.Tensor | None:
        """int64 (B,) class of each bag, -1 where it is missing; None for a task without classes."""
        for column, found in enumerate(self._objective.tasks):
            if found.name == task and found.is_classification:
                return self._targets[:, column].nan_to_num(-1).long()
        return None


def class_weights(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Weights n / (k n_c), so that every class has the same say and the weights sum to n over the rows."""
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def _facts(task: Task, target: npt.NDArray[np.float64], head: Head, class_balance: ClassBalance) -> TaskFacts:
    known = target[~np.isnan(target)]
    if not len(known):
        cure = "check the task's column and map, or drop the task"
        raise TableError(f"task {task.name!r} has no labelled row in train", hint=cure)
    if not task.is_classification:
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = float(known.mean()), float(known.std())
        if not np.isfinite(std):
            fact = f"task {task.name!r}: numbers up to {np.abs(known).max():g} are too large to learn from"
            raise TableError(fact, hint="give them in a larger unit, or map wrong ones to None")
        if not std > 0:
            raise TableError(f"task {task.name!r}: all {len(known)} numbers are {mean:g}", hint="drop the task")
        standard = torch.tensor((known - mean) / std, dtype=torch.float64)
        loss = head.loss(torch.zeros(len(known), 1, dtype=torch.float64), standard, None)
        return TaskFacts(counts=(len(known),), prior_loss=float(loss.mean()), mean=mean, std=std)
    counts = np.bincount(known.astype(np.int64), minlength=task.n_classes)
    weights = class_weights(counts) if class_balance == "balanced" else np.ones(len(counts))
    share = counts * weights / (counts * weights).sum()
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    return TaskFacts(
        counts=tuple(counts.tolist()),
        class_weight=tuple(weights.tolist()) if class_balance == "balanced" else (),
        # One class only has no entropy; its loss then counts in nats.
        prior_loss=entropy or 1.0,
    )
