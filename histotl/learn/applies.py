"""When a task applies to a row at all: only where another task has some of its classes.

``dysplasia: binary(…, applies_if="histotype in ('TA', 'TVA')")`` is learnt from adenomas alone; elsewhere its label
counts as missing, and so it does where the histotype is unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from histotl.core.errors import SpecError, UsageError
from histotl.learn.labels import hard, label_text

_CURE = "write applies_if=\"histotype in ('TA', 'TVA')\", with ==, !=, in or not in, and the name of another task"


@dataclass(frozen=True, kw_only=True)
class Applies:
    """Some classes of a parent task.

    Args:
        parent: Name of the task.
        names: Classes that are named.
        inside: Whether the task applies to these classes, or to all others.
    """

    parent: str
    names: tuple[str, ...]
    inside: bool

    def chosen(self, classes: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which classes of the parent the task applies to (k,)."""
        return np.array([(name in self.names) == self.inside for name in classes])


class Conditional(Protocol):
    """What is needed of a task."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes."""

    @property
    def applies_if(self) -> str:
        """Its condition, or nothing."""


def parse_applies(text: str) -> Applies:
    """Read a condition; it is parsed, and never run.

    Raises:
        SpecError: It is no comparison of one task with names of classes.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or not isinstance(node.left, ast.Name):
            raise ValueError(text)
        value, op = ast.literal_eval(node.comparators[0]), node.ops[0]
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"condition {text!r} cannot be read", hint=_CURE) from error
    several = isinstance(value, tuple | list | set)
    if not isinstance(op, ast.In | ast.NotIn if several else ast.Eq | ast.NotEq):
        raise SpecError(f"condition {text!r} compares a name with {value!r}", hint=_CURE)
    names = tuple(label_text(name) or "" for name in (value if several else (value,)))
    return Applies(parent=node.left.id, names=names, inside=isinstance(op, ast.In | ast.Eq))


def check_parents(tasks: Sequence[Conditional], with_classes: set[str]) -> None:
    """Refuse conditions on what is no other task with classes, on classes that it lacks, and circles.

    Args:
        tasks: All tasks.
        with_classes: Names of those whose answers are classes.

    Raises:
        UsageError: Names the task and what is wrong.
    """
    by_name = {task.name: task for task in tasks}
    for task in tasks:
        seen, at = [task.name], task
        while at.applies_if:
            condition = parse_applies(at.applies_if)
            parent = by_name.get(condition.parent)
            where = f"task {at.name!r} applies if {at.applies_if}"
            if parent is None or condition.parent not in with_classes:
                cure = f"name one of: {', '.join(sorted(with_classes - {at.name})) or 'a task with classes'}"
                raise UsageError(f"{where}, but {condition.parent!r} is no task with classes", hint=cure)
            strange = [name for name in condition.names if parent.classes and name not in parent.classes]
            if strange:
                cure = f"its classes are {', '.join(parent.classes)}"
                raise UsageError(f"{where}, but {condition.parent!r} has no class {strange[0]!r}", hint=cure)
            if parent.name in seen:
                raise UsageError(f"{where}, which goes round in a circle", hint="drop one applies_if")
            seen.append(parent.name)
            at = parent


def masked(
    tasks: Sequence[Conditional], targets: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Targets with NaN where a task does not apply, or its parent's label is missing; parents before their children."""
    by_name = {task.name: task for task in tasks}
    done: dict[str, npt.NDArray[np.float64]] = {}

    def target_of(name: str) -> npt.NDArray[np.float64]:
        if name not in done:
            task, target = by_name[name], targets[name]
            if task.applies_if:
                condition = parse_applies(task.applies_if)
                parent = hard(target_of(condition.parent))
                chosen = condition.chosen(by_name[condition.parent].classes)
                applies = ~np.isnan(parent) & chosen[np.nan_to_num(parent).astype(np.int64)]
                target = np.where(applies.reshape(-1, *([1] * (target.ndim - 1))), target, np.nan)
            done[name] = target
        return done[name]

    return {task.name: target_of(task.name) for task in tasks}


def chances(
    tasks: Sequence[Conditional], probabilities: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Task -> probability (n,) that it applies, for tasks with a condition: that of the parent's classes.

    A parent with a condition of its own must apply, too.

    Args:
        tasks: All tasks.
        probabilities: Task -> (n, k) of those with classes.
    """
    by_name = {task.name: task for task in tasks}

    def chance(task: Conditional) -> npt.NDArray[np.float64]:
        condition = parse_applies(task.applies_if)
        parent = by_name[condition.parent]
        found = probabilities[parent.name][:, condition.chosen(parent.classes)].sum(axis=1)
        return np.asarray(found * chance(parent) if parent.applies_if else found)

    return {task.name: chance(task) for task in tasks if task.applies_if}
