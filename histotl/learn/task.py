"""What is to be predicted: columns of a label table, their kind, their classes, and how values become targets."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from histotl.core._literals import fit_literal
from histotl.core.errors import SpecError, TableError, UsageError
from histotl.core.registry import create, plugin
from histotl.core.spec import Spec, parse_spec
from histotl.learn._task_checks import check_classes, check_sources
from histotl.learn.applies import check_parents, parse_applies
from histotl.learn.heads.base import Head, Nature
from histotl.learn.labels import (
    class_targets,
    clean_map,
    flag_targets,
    joined_targets,
    label_text,
    number_targets,
    shown,
    split_cell,
    time_targets,
    vote_targets,
)

REST = "*"
"""Key of :attr:`Task.map` that stands for every value which the map does not name."""

MISSING_WORDS = ("na", "n/a", "#n/a", "nan", "null", "missing", "?", "-")
"""Texts that are hardly ever a class; classes found in a column must not be made of them."""

RESERVED = ("slide_id", "path", "n_tiles", "failure_score", "model_split", "attention")
"""Columns of the predictions that no task may be called; neither may those that begin with ``ood_``."""

Balance = Literal["", "balanced", "effective", "logit_adjust", "sampled", "none"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to predict. Several tasks may read the same column through different maps.

    Args:
        name: Name in every output; letters, digits, ``_ . -``.
        kind: The name of a head: ``binary``, ``multiclass``, ``multilabel``, ``ordinal``, ``regression``,
            ``survival``, ``embedding``, or one of your own.
        column: Column of the label table; the task's name when empty. Labels of a multilabel task stand in it joined
            by ``;`` (``none`` for none of them); of a survival task it is the time.
        classes: Class names in order. Binary: negative, then positive. Ordinal: lowest first. Multiclass,
            embedding and multilabel: may be empty, and are then every value found, sorted. Regression, survival: none.
        map: Column value -> class name (or number), None for missing. The key ``*`` stands for all values not named;
            without it they pass through as they are. Of several labels in a cell each is mapped, and None drops it.
        weight: Factor of the task's loss in the joint loss.
        columns: Multilabel: one column a label with 1 or 0, empty where that label is unknown; in place of ``column``.
        votes: Binary, multiclass and embedding: one column a class with its votes, as counts or shares, in place of
            ``column``. The shares are the targets of a soft cross-entropy; results are measured against the majority.
        event: Survival: column with 1 where the event was seen, 0 where the time is that of the last look.
        applies_if: Condition on another task's class, such as ``histotype in ('TA', 'TVA')``; elsewhere the label
            counts as missing. Answers are then those for cases to which the task applies.
        auxiliary: The task helps to learn and is dropped afterwards.
        adversary: Above 0, what tasks share unlearns what this one needs, such as the site: its gradient comes back
            with the other sign and this strength (1.0 is the gradient itself). It is dropped afterwards, too.
        class_balance: In place of the training's own, for this task; one task of a training can be ``sampled``.
        options: Arguments of the head.
    """

    name: str
    kind: str
    column: str = ""
    classes: tuple[str, ...] = ()
    map: Mapping[str, str | None] = field(default_factory=dict)
    weight: float = 1.0
    columns: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    event: str = ""
    applies_if: str = ""
    auxiliary: bool = False
    adversary: float = 0.0
    class_balance: Balance = ""
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"task name {self.name!r} is not usable", hint="use letters, digits, '_', '.' and '-'")
        if not self.weight > 0:
            raise UsageError(f"task {self.name!r}: weight is {self.weight}", hint="give a weight above 0, or drop it")
        if not 0 <= self.adversary < float("inf"):
            cure = "give a strength of 0 or more, such as 1.0"
            raise UsageError(f"task {self.name!r}: adversary is {self.adversary}", hint=cure)
        classes = tuple(label_text(name) or "" for name in self.classes or self.columns or self.votes)
        object.__setattr__(self, "column", self.column or self.name)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "map", clean_map(self.map))
        # As the head keeps them: lists from JSON or TOML are tuples, whole numbers floats.
        object.__setattr__(self, "options", {key: getattr(self.head, key) for key in self.options})
        check_sources(self)
        check_classes(self)
        if self.applies_if:
            parse_applies(self.applies_if)

    @cached_property
    def head(self) -> Head:
        """The head that the kind and the options name."""
        return cast("Head", create("head", Spec(self.kind, self.options)))

    @property
    def head_spec(self) -> str:
        """The same as text."""
        return str(Spec(self.kind, self.options))

    @property
    def nature(self) -> Nature:
        """What the head says about its kind of task."""
        return self.head.nature

    @property
    def is_helper(self) -> bool:
        """Whether it only takes part in training: an auxiliary task or an adversary."""
        return self.auxiliary or self.adversary > 0

    @property
    def is_classification(self) -> bool:
        """Whether the answer is one of the classes."""
        return self.nature.answers == "classes"

    @property
    def n_classes(self) -> int:
        """Number of classes or labels; 0 for others."""
        return len(self.classes)

    @property
    def n_targets(self) -> int:
        """Columns of the targets; with one, targets are (n,)."""
        return self.nature.n_targets(self.n_classes, votes=bool(self.votes))

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the label table that the labels stand in."""
        return self.votes or self.columns or ((self.column, self.event) if self.event else (self.column,))

    def values(self, column: Iterable[object]) -> list[str | None]:
        """Column values after the map, as text; None where missing."""
        return [self._mapped(label_text(value)) for value in column]

    def _mapped(self, text: str | None) -> str | None:
        return text if text is None or not self.map else self.map.get(text, self.map.get(REST, text))

    def _cells(self, column: Iterable[object]) -> list[tuple[str, ...] | None]:
        """Labels of each cell after the map; None where missing."""
        cells = [split_cell(value) for value in column]
        return [None if c is None else tuple(m for m in map(self._mapped, c) if m is not None) for c in cells]

    def resolved(self, *columns: Iterable[object]) -> Task:
        """The same task with its classes known: where none are named, every value found, sorted.

        Args:
            columns: Values of the columns that :attr:`reads` names.

        Raises:
            TableError: Fewer than two values were found, or one that looks like a missing label.
        """
        if self.classes or self.nature.most is not None:
            return self
        if self.nature.answers == "labels":
            found = sorted({name for cell in self._cells(columns[0]) for name in cell or ()})
        else:
            found = sorted({text for text in self.values(columns[0]) if text is not None})
        doubtful = [text for text in found if text.lower() in MISSING_WORDS]
        if doubtful:
            cure = f"add map={{{doubtful[0]!r}: None}} if it means missing, else name all classes with classes="
            fact = f"column {self.column!r} holds {shown(doubtful)}, which looks like a missing label"
            raise TableError(f"task {self.name!r}: {fact}", hint=cure)
        if len(found) < 2:
            cure = "check the column and the map: there is nothing to tell apart"
            raise TableError(
                f"task {self.name!r}: column {self.column!r} holds {len(found)} classes: {found}", hint=cure
            )
        return replace(self, classes=tuple(found))

    def targets(self, *columns: Iterable[object]) -> npt.NDArray[np.float64]:
        """Targets float64 (n,), or (n, c) of several columns; NaN where the label is missing.

        The index of the class; 1 or 0 a label; the share of votes a class; the number; time and event.

        Args:
            columns: Values of the columns that :attr:`reads` names.

        Raises:
            TableError: Values that are no class, or no number; the message lists them.
        """
        where, answers = f"task {self.name!r}:", self.nature.answers
        in_column = f"{where} column {self.column!r}"
        if self.votes:
            return vote_targets(where, [list(map(label_text, column)) for column in columns], self.votes)
        if self.columns:
            flags = zip(self.columns, columns, strict=True)
            return np.stack([flag_targets(f"{where} column {name!r}", column) for name, column in flags], axis=1)
        if answers == "labels":
            return joined_targets(in_column, self._cells(columns[0]), self.classes)
        if answers == "risk":
            return time_targets(where, self.values(columns[0]), columns[1], (self.column, self.event))
        if answers == "number":
            return number_targets(in_column, self.values(columns[0]))
        return class_targets(in_column, self.values(columns[0]), self.classes)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; what is not set is left out, but for the first six."""
        entry: dict[str, object] = {
            "name": self.name,
            "kind": self.kind,
            "column": self.column,
            "classes": list(self.classes),
            "map": dict(self.map),
            "weight": self.weight,
        }
        more = {**self._set(), **self.options}
        return entry | {key: list(value) if isinstance(value, tuple) else value for key, value in more.items()}

    def _set(self) -> dict[str, object]:
        """Those of the later fields that are set."""
        return {name: getattr(self, name) for name in _LATER if getattr(self, name)}

    def __str__(self) -> str:
        args: dict[str, object] = {"column": self.column, "classes": self.classes, "map": dict(self.map)}
        return f"{self.name}: {Spec(self.kind, {**args, 'weight': self.weight, **self._set(), **self.options})}"


_LATER = ("columns", "votes", "event", "applies_if", "auxiliary", "adversary", "class_balance")
_KNOWN = ("name", "kind", "column", "classes", "map", "weight", *_LATER)


def parse_task(text: str) -> Task:
    """Read ``name: kind(column='…', classes=('…', …), map={'…': '…'}, …)``; every argument may be left out.

    What is no argument of :class:`Task` is one of the kind's head.

    Raises:
        SpecError: The text is not of that form.
        UsageError: The task itself is wrong.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        example = text.split()[0] if text.strip() else "label"
        raise SpecError(f"task {text!r} has no kind", hint=f"write {example}: multiclass(column='…')")
    spec = parse_spec(rest)
    return task_from_dict({"name": name.strip(), "kind": spec.name, **spec.args})


def task_from_dict(entry: Mapping[str, object]) -> Task:
    """Inverse of :meth:`Task.to_dict`; also reads the tables of a TOML file.

    Raises:
        SpecError: An argument that neither a task nor its head has, or of another type.
    """
    where = f"task {entry.get('name')!r}"
    name, kind, column = entry.get("name"), entry.get("kind"), entry.get("column", "")
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(column, str):
        raise SpecError(f"{where}: name, kind and column are not all text", hint="give kind = 'multiclass' or another")
    options = _options(entry, kind, where)
    classes, mapping, weight = entry.get("classes", ()), entry.get("map", {}), entry.get("weight", 1.0)
    if not isinstance(classes, list | tuple) or not isinstance(mapping, Mapping):
        raise SpecError(
            f"{where}: classes is no list or map is no table", hint="write classes=('a', 'b'), map={'x': 'a'}"
        )
    strange = [item for item in (*classes, *mapping.values()) if isinstance(item, list | tuple | Mapping)]
    if strange:
        raise SpecError(f"{where}: {strange[0]!r} is no class name", hint="write classes and map with plain texts")
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        raise SpecError(f"{where}: weight={weight!r} is no number", hint="give weight as a number above 0")
    later = {key: fit_literal(Task, key, entry[key], where=where) for key in _LATER if key in entry}
    return Task(
        name=name,
        kind=kind,
        column=column,
        classes=tuple(classes),
        map=dict(mapping),
        weight=float(weight),
        options=options,
        **later,  # type: ignore[arg-type]  # of the annotated types
    )


def _options(entry: Mapping[str, object], kind: str, where: str) -> dict[str, object]:
    """Arguments of the head, after a check that it has them."""
    own = [f.name for f in dataclasses.fields(plugin("head", kind).factory) if f.init]
    for key in entry:
        if key not in (*_KNOWN, *own):
            near = difflib.get_close_matches(key, (*_KNOWN, *own), n=1)
            cure = f"did you mean {near[0]}?" if near else f"it takes: {', '.join((*_KNOWN, *own))}"
            raise SpecError(f"{where} has no argument {key!r}", hint=cure)
    return {key: value for key, value in entry.items() if key not in _KNOWN}


def tasks_from_toml(path: Path | str) -> tuple[Task, ...]:
    """Read the tasks of a TOML file.

    Tables ``[tasks.NAME]``, tables ``[[task]]`` with a name, or lines ``tasks = ["NAME: kind(…)", …]``.

    TOML has no None, so an empty text in ``map`` means missing.

    Raises:
        SpecError: The file cannot be read or holds no task.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}", hint="give a TOML file with a table [tasks.NAME]") from error
    tasks = content.get("tasks", content.get("task"))
    entries: list[object] = []
    if isinstance(tasks, list):
        entries = tasks
    elif isinstance(tasks, dict) and all(isinstance(entry, dict) for entry in tasks.values()):
        entries = [{"name": name, **entry} for name, entry in tasks.items()]
    if not entries:
        raise SpecError(f"{path} holds no tasks", hint="add a table [tasks.NAME] with kind and column")
    return check_names([task_from_dict(e) if isinstance(e, dict) else parse_task(str(e)) for e in entries])


def check_names(tasks: Sequence[Task | str], *, reserved: str = "") -> tuple[Task, ...]:
    """The tasks, after a check that there is one at least and that no name comes twice or is taken.

    Args:
        tasks: The tasks; a text is read by :func:`parse_task`.
        reserved: One more name that is taken.

    Raises:
        UsageError: No task, a name twice, or one that another column of the predictions has.
        SpecError: A text cannot be read.
    """
    given = (tasks,) if isinstance(tasks, Task | str) else tasks
    found = tuple(parse_task(task) if isinstance(task, str) else task for task in given)
    if not found:
        raise UsageError("there is no task", hint="give --task \"label: multiclass(column='label')\"")
    names = [task.name for task in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two tasks are called {twice[0]!r}", hint="rename one")
    taken = [name for name in names if name in (*RESERVED, reserved) or name.startswith("ood_")]
    if taken:
        cure = f"write {taken[0]}_task: …(column='{taken[0]}')"
        raise UsageError(f"a task cannot be called {taken[0]!r}: the predictions have such a column", hint=cure)
    if all(task.is_helper for task in found):
        raise UsageError("all tasks are auxiliary: nothing would be predicted", hint="add one that is predicted")
    # What answers say of a condition takes the parent's answers.
    kept = {task.name for task in found if task.is_classification and not task.is_helper}
    check_parents([task for task in found if not task.is_helper], kept)
    check_parents(found, {task.name for task in found if task.is_classification})
    return found
