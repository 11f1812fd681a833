"""What a task must be, whatever its head says."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from histotl.core.errors import UsageError

if TYPE_CHECKING:
    from histotl.learn.task import Task

TAKEN = (":uncalibrated", ":joint")
"""Ends of other columns that no class may have."""


def check_sources(task: Task) -> None:
    """Refuse columns that the kind does not read, or lacks.

    Raises:
        UsageError: Names what is wrong.
    """
    where, answers = f"task {task.name!r}", task.nature.answers
    if task.votes and not task.nature.votes:
        raise UsageError(f"{where}: a {task.kind} task takes no votes", hint="make it binary or multiclass")
    if task.columns and answers != "labels":
        raise UsageError(f"{where}: columns= is for tasks of several labels", hint="give one column= or votes=")
    if answers == "risk" and not task.event:
        cure = f"write {task.name}: {task.kind}(column='months', event='dead')"
        raise UsageError(f"{where}: no column says whether the event was seen", hint=cure)
    if task.event and answers != "risk":
        raise UsageError(f"{where}: event= is for survival, not {task.kind}", hint="drop event=")
    for name, given in (("columns", task.columns), ("votes", task.votes)):
        if given and len(given) != len(task.classes):
            fact = f"{where}: {len(given)} {name} for {len(task.classes)} classes"
            raise UsageError(fact, hint=f"give one of {name} a class, in the order of the classes")


def check_classes(task: Task) -> None:
    """Refuse classes that the kind does not have, or that would take the name of another column.

    Raises:
        UsageError: Names what is wrong.
    """
    n, where, nature = len(task.classes), f"task {task.name!r}", task.nature
    if len(set(task.classes)) < n or "" in task.classes:
        raise UsageError(f"{where}: classes {task.classes} repeat or are empty", hint="name every class once")
    own = ("applies", "set", *(("expected",) if nature.ordered else ()))
    taken = [c for c in task.classes if c.endswith(TAKEN) or c in own]
    if taken:
        raise UsageError(f"{where}: class {taken[0]!r} would take another column's name", hint="rename it in map=")
    a = f"{'an' if task.kind[:1] in 'aeio' else 'a'} {task.kind} task"
    if nature.most == 0 and n:
        raise UsageError(f"{where}: {a} has no classes, got {task.classes}", hint="drop classes=")
    if nature.most is None and not nature.ordered and n == 1:
        raise UsageError(f"{where}: one class only", hint="name all classes, or none for every value found")
    if nature.most is not None and not nature.least <= n <= nature.most:
        cure = "write classes=('negative', 'positive') with your two names" if nature.most == 2 else "name them"
        raise UsageError(f"{where}: {a} has {nature.least} classes, not {n}", hint=cure)
    if nature.ordered and n < nature.least:
        cure = "write classes=('none', 'low', 'high'), lowest first; two grades are a binary task"
        raise UsageError(f"{where}: {a} has {nature.least} or more classes, not {n}", hint=cure)
    strangers = sorted({v for v in task.map.values() if v is not None and task.classes} - set(task.classes))
    if strangers:
        near = difflib.get_close_matches(strangers[0], task.classes, n=1)
        cure = f"did you mean {near[0]}?" if near else f"map to one of {', '.join(task.classes)}, or to None"
        raise UsageError(f"{where}: map gives {strangers[0]!r}, which is no class", hint=cure)
