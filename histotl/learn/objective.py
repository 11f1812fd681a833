"""The joint loss: each task over its labelled rows, class weights, and units that can be compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import TableError
from histotl.learn.config import ClassBalance
from histotl.learn.heads.base import Adjustable, Comparing, Head, Joint, Layered, Learning, TaskFacts, is_joint
from histotl.learn.labels import known_rows
from histotl.learn.risk_set import RiskSet
from histotl.learn.task import Task
from histotl.learn.weights import TAU, class_weights, facts_of, sampled_task

__all__ = ["Labels", "Objective", "Targets", "TaskFacts", "class_weights"]

PRIOR_MIN = 1e-6
"""Least share of a class in a logarithm."""

Targets = Mapping[str, npt.NDArray[np.float64]]
"""Task name -> class indices or numbers (B,), or several columns (B, c), NaN where the label is missing."""


class Objective:
    """Losses of all tasks on outputs of a network.

    A row without a label of a task is dropped before that task's loss, so it counts exactly as if it were not there;
    so does each entry of several labels.

    Args:
        tasks: What is predicted.
        targets: Training labels.
        class_balance: ``balanced``, ``effective``, ``logit_adjust``, ``sampled`` or ``none``; a task's own goes first.

    Raises:
        TableError: A task has no labelled row, or all its numbers are equal.
        UsageError: Logit adjustment of a head that has none; or the classes of several tasks are to be drawn equally.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        targets: Targets,
        *,
        class_balance: ClassBalance = "balanced",
    ) -> None:
        for task in tasks:
            if not known_rows(targets[task.name]).any():
                cure = "check the task's column and map, or drop the task"
                raise TableError(f"task {task.name!r} has no labelled row in train", hint=cure)
        self.tasks = tuple(_learnt(task, targets[task.name]) for task in tasks)
        self.heads: dict[str, Head] = {task.name: task.head for task in self.tasks}
        self._sampled = sampled_task(tasks, class_balance)
        others: ClassBalance = "balanced" if class_balance == "sampled" else class_balance
        balances: dict[str, ClassBalance] = dict.fromkeys(self.heads, others)
        balances |= {self._sampled: "sampled"} if self._sampled else {}
        self.facts = {t.name: facts_of(t, targets[t.name], self.heads[t.name], balances[t.name]) for t in self.tasks}
        self._adjusted = {t.name: (t.class_balance or class_balance) == "logit_adjust" for t in self.tasks}
        self._tensors = {name: (_tensor(fact.class_weight), _prior(fact.prior)) for name, fact in self.facts.items()}
        self._columns = _columns(self.tasks)
        self._training = {task.name: targets[task.name] for task in self.tasks}
        self._risk_sets = {t.name: RiskSet(targets[t.name]) for t in self.tasks if is_joint(t.head)}
        self.priors = {task.name: self.facts[task.name].prior_loss / task.weight for task in tasks}
        self._main = {task.name for task in tasks if not task.is_helper}

    def to(self, device: torch.device) -> Objective:
        """Move class weights, priors and risk sets."""
        self._tensors = {
            name: (None if w is None else w.to(device), None if p is None else p.to(device))
            for name, (w, p) in self._tensors.items()
        }
        for risk_set in self._risk_sets.values():
            risk_set.to(device)
        return self

    def begin(self) -> None:
        """Forget the scores of another network, before one is trained."""
        for risk_set in self._risk_sets.values():
            risk_set.forget()

    def apart(self) -> Objective:
        """The same objective with risk sets of its own, for each of several networks that are trained side by side."""
        other = copy.copy(self)
        other._risk_sets = {name: risk_set.empty() for name, risk_set in self._risk_sets.items()}
        return other

    def as_drawn(self) -> Objective:
        """The objective on rows that were drawn equally from all classes: they get no weight on top of that."""
        if not self._sampled:
            return self
        other = copy.copy(self)
        other._tensors = self._tensors | {self._sampled: (None, self._tensors[self._sampled][1])}
        return other

    @property
    def rowwise(self) -> bool:
        """Whether every loss is a mean over rows, without a memory of earlier steps."""
        return not self._risk_sets

    def n_outputs(self) -> tuple[tuple[str, int], ...]:
        """(task name, outputs of its layer) of every task."""
        return tuple((task.name, self.heads[task.name].n_outputs(task.n_classes)) for task in self.tasks)

    def layers(self) -> tuple[tuple[str, str], ...]:
        """(task name, spec of its head) of the tasks whose head builds its own layer."""
        return tuple((t.name, t.head_spec) for t in self.tasks if isinstance(self.heads[t.name], Layered))

    def adversaries(self) -> tuple[tuple[str, float], ...]:
        """(task name, strength) of the tasks that what is shared must not help."""
        return tuple((task.name, task.adversary) for task in self.tasks if task.adversary)

    def tensor(self, targets: Targets) -> torch.Tensor:
        """Targets float32 (B, t), one column or more a task, numbers standardised, NaN where missing.

        Of the very targets that the objective was made with, rows of a task with one joint loss also carry their
        number, by which the risk set knows them.
        """
        parts = []
        for task in self.tasks:
            fact, given = self.facts[task.name], targets[task.name]
            values = given.reshape(len(given), -1)
            parts.append((values - fact.mean) / fact.std)
            if task.name in self._risk_sets:
                numbers = np.arange(len(given), dtype=np.float64)
                parts.append(np.where(given is self._training[task.name], numbers, np.nan)[:, None])
        return torch.tensor(np.concatenate(parts, axis=1), dtype=torch.float32)

    def losses(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean loss of each task over its labelled rows; tasks without any are left out.

        Args:
            outputs: Task name -> float (B, o).
            targets: From :meth:`tensor`.
        """
        found: dict[str, torch.Tensor] = {}
        silent: dict[str, torch.Tensor] = {}
        for task in self.tasks:
            target = targets[:, self._columns[task.name]]
            # What is behind the labels of a row with one joint loss is its number, missing or not.
            values = target[:, : task.n_targets]
            labelled = torch.nonzero(~torch.isnan(values).all(dim=1))[:, 0]
            if len(labelled):
                loss = self._loss(task, outputs[task.name][labelled], target[labelled])
                if loss is not None:
                    found[task.name] = loss
                elif outputs[task.name].requires_grad:
                    silent[task.name] = outputs[task.name].sum() * 0
        # Before any event was seen, a step of censored rows teaches nothing; it must still be a step.
        return found or silent

    def _loss(self, task: Task, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        head, (weight, prior) = self.heads[task.name], self._tensors[task.name]
        if task.name in self._risk_sets:
            return self._risk_sets[task.name].loss(cast("Joint", head), outputs, target)
        if self._adjusted[task.name] and prior is not None and isinstance(head, Adjustable):
            outputs = head.adjusted(outputs, prior.to(outputs.dtype), TAU)
        known = target[:, 0] if task.n_targets == 1 and task.nature.answers != "labels" else target
        if task.is_classification and known.ndim == 1:
            known = known.long()
        rows = head.row_losses(outputs, known, weight)
        if isinstance(head, Comparing):
            rows = rows + head.compared(outputs, known, weight)
        return rows[~torch.isnan(target)].mean() if task.nature.answers == "labels" else rows.mean()

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Sum of the losses in units of their constant predictors, by which checkpoints are compared.

        Auxiliary tasks and adversaries do not count, unless there are no others.
        """
        main = {name: loss for name, loss in losses.items() if name in self._main}
        return self.joined(main or losses)

    def joined(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same of all tasks."""
        return torch.stack([loss / self.priors[name] for name, loss in losses.items()]).sum()

    def judge(self, targets: torch.Tensor) -> Labels:
        """The labels of some bags, for parts of the network with losses of their own."""
        targets = targets.clone()
        for name in self._risk_sets:
            # Answers of parts are not those of the network: they stay out of the risk set.
            targets[:, self._columns[name].stop - 1] = torch.nan
        return Labels(self, targets)

    def column(self, task: str) -> slice:
        """Columns of a task in what :meth:`tensor` gives."""
        return self._columns[task]


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
        return self._objective.joined(losses) if losses else self._targets.new_zeros(())

    def classes(self, task: str) -> torch.Tensor | None:
        """int64 (B,) class of each bag, -1 where it is missing; None for a task without classes."""
        for found in self._objective.tasks:
            if found.name == task and found.is_classification:
                target = self._targets[:, self._objective.column(task)]
                index = target[:, 0] if target.shape[1] == 1 else target.nan_to_num(0).argmax(dim=1)
                return torch.where(torch.isnan(target[:, 0]), -1, index.nan_to_num(-1)).long()
        return None


def _learnt(task: Task, target: npt.NDArray[np.float64]) -> Task:
    """The task with the options that its labels fix."""
    head = task.head
    if not isinstance(head, Learning):
        return task
    try:
        return with_options(task, head.learn(target[known_rows(target)]))
    except TableError as error:
        raise TableError(f"task {task.name!r}: {error.message}", hint=error.hint) from error


def with_options(task: Task, head: Head) -> Task:
    """The task with a head's own options: those that differ from their defaults."""
    given = {f.name: getattr(head, f.name) for f in fields(head) if f.init}  # type: ignore[arg-type]  # a dataclass
    usual = {f.name: f.default for f in fields(head) if f.init}  # type: ignore[arg-type]
    return replace(task, options={k: v for k, v in given.items() if k in task.options or v != usual[k]})


def _columns(tasks: Sequence[Task]) -> dict[str, slice]:
    found, start = {}, 0
    for task in tasks:
        width = task.n_targets + is_joint(task.head)
        found[task.name] = slice(start, start + width)
        start += width
    return found


def _tensor(values: tuple[float, ...]) -> torch.Tensor | None:
    return torch.tensor(values, dtype=torch.float32) if values else None


def _prior(values: tuple[float, ...]) -> torch.Tensor | None:
    """Without 0 and 1, which have no logarithm or logit."""
    found = _tensor(values)
    return None if found is None else found.clamp(PRIOR_MIN, 1 - PRIOR_MIN)
