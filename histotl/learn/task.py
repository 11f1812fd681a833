"""What is to be predicted: one column of a label table, its kind, its classes, and how its values become classes."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.errors import SpecError, TableError, UsageError
from histotl.core.registry import plugin
from histotl.core.spec import Spec, parse_spec

KINDS = ("binary", "multiclass", "ordinal", "regression")
"""Kinds that come with the package; heads of other kinds are plug-ins."""

REST = "*"
"""Key of :attr:`Task.map` that stands for every value which the map does not name."""

MISSING_WORDS = ("na", "n/a", "#n/a", "nan", "null", "missing", "?", "-")
"""Texts that are hardly ever a class; classes found in a column must not be made of them."""

RESERVED = ("slide_id", "path", "n_tiles", "failure_score", "model_split", "attention")
"""Columns of the predictions that no task may be called; neither may those that begin with ``ood_``."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_WHOLE = re.compile(r"^([+-]?\d+)\.0+$")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to predict. Several tasks may read the same column through different maps.

    Args:
        name: Name in every output; letters, digits, ``_ . -``.
        kind: ``binary``, ``multiclass``, ``ordinal``, ``regression``, or the name of a head plug-in.
        column: Column of the label table; the task's name when empty.
        classes: Class names in order. Binary: negative, then positive. Ordinal: lowest first. Multiclass: may be
            empty, and is then every value found, sorted. Regression: none.
        map: Column value -> class name (or number), None for missing. The key ``*`` stands for all values not named;
            without it they pass through as they are.
        weight: Factor of the task's loss in the joint loss.
    """

    name: str
    kind: str
    column: str = ""
    classes: tuple[str, ...] = ()
    map: Mapping[str, str | None] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"task name {self.name!r} is not usable", hint="use letters, digits, '_', '.' and '-'")
        if self.kind not in KINDS:
            plugin("head", self.kind)
        if not self.weight > 0:
            raise UsageError(f"task {self.name!r}: weight is {self.weight}", hint="give a weight above 0, or drop it")
        classes = tuple(_label(name) or "" for name in self.classes)
        object.__setattr__(self, "column", self.column or self.name)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "map", _clean_map(self.map))
        self._check_classes()

    def _check_classes(self) -> None:
        n, where = len(self.classes), f"task {self.name!r}"
        if len(set(self.classes)) < n or "" in self.classes:
            raise UsageError(f"{where}: classes {self.classes} repeat or are empty", hint="name every class once")
        taken = [c for c in self.classes if c.endswith(":uncalibrated") or c in self._own_columns]
        if taken:
            raise UsageError(f"{where}: class {taken[0]!r} would take another column's name", hint="rename it in map=")
        if self.kind == "binary" and n != 2:
            cure = "write classes=('negative', 'positive') with your two names"
            raise UsageError(f"{where}: a binary task has 2 classes, not {n}", hint=cure)
        if self.kind == "ordinal" and n < 3:
            cure = "write classes=('none', 'low', 'high'), lowest first; two grades are a binary task"
            raise UsageError(f"{where}: an ordinal task has 3 or more classes, not {n}", hint=cure)
        if self.kind == "multiclass" and n == 1:
            raise UsageError(f"{where}: one class only", hint="name all classes, or none for every value found")
        if self.kind == "regression" and n:
            raise UsageError(f"{where}: a regression task has no classes, got {self.classes}", hint="drop classes=")
        strangers = sorted({v for v in self.map.values() if v is not None and self.classes} - set(self.classes))
        if strangers:
            near = difflib.get_close_matches(strangers[0], self.classes, n=1)
            cure = f"did you mean {near[0]}?" if near else f"map to one of {', '.join(self.classes)}, or to None"
            raise UsageError(f"{where}: map gives {strangers[0]!r}, which is no class", hint=cure)

    @property
    def _own_columns(self) -> tuple[str, ...]:
        """Ends of the names of columns that predictions have beside those of the classes."""
        return ("set", "expected") if self.kind == "ordinal" else ("set",)

    @property
    def is_classification(self) -> bool:
        """Whether answers are classes."""
        return self.kind != "regression"

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return len(self.classes)

    def values(self, column: Iterable[object]) -> list[str | None]:
        """Column values after the map, as text; None where missing."""
        mapped: list[str | None] = []
        for value in column:
            text = _label(value)
            if text is not None and self.map:
                text = self.map.get(text, self.map.get(REST, text))
            mapped.append(text)
        return mapped

    def resolved(self, column: Iterable[object]) -> Task:
        """The same task with its classes known: for a multiclass task without any, every value found, sorted.

        Raises:
            TableError: Fewer than two values were found, or one that looks like a missing label.
        """
        if self.classes or not self.is_classification:
            return self
        found = sorted({text for text in self.values(column) if text is not None})
        doubtful = [text for text in found if text.lower() in MISSING_WORDS]
        if doubtful:
            cure = f"add map={{{doubtful[0]!r}: None}} if it means missing, else name all classes with classes="
            fact = f"column {self.column!r} holds {_shown(doubtful)}, which looks like a missing label"
            raise TableError(f"task {self.name!r}: {fact}", hint=cure)
        if len(found) < 2:
            cure = "check the column and the map: there is nothing to tell apart"
            raise TableError(
                f"task {self.name!r}: column {self.column!r} holds {len(found)} classes: {found}", hint=cure
            )
        return replace(self, classes=tuple(found))

    def targets(self, column: Iterable[object]) -> npt.NDArray[np.float64]:
        """Targets float64 (n,): index of the class, or the number; NaN where the label is missing.

        Raises:
            TableError: Values that are no class, or no number; the message lists them.
        """
        texts = self.values(column)
        if self.is_classification:
            index = {name: float(i) for i, name in enumerate(self.classes)}
            bad = sorted({text for text in texts if text is not None and text not in index})
            if bad:
                cure = f"name them in map=, as one of {', '.join(self.classes)} or None"
                raise TableError(
                    f"task {self.name!r}: column {self.column!r} holds {_shown(bad)}, not among its classes", hint=cure
                )
            return np.array([np.nan if text is None else index[text] for text in texts], dtype=np.float64)
        numbers = [np.nan if text is None else _number(text) for text in texts]
        bad = sorted({str(text) for text, number in zip(texts, numbers, strict=True) if number is None})
        if bad:
            cure = "give numbers with a decimal point, or map the words to numbers or None"
            raise TableError(
                f"task {self.name!r}: column {self.column!r} holds {_shown(bad)}, no finite numbers", hint=cure
            )
        return np.array(numbers, dtype=np.float64)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "column": self.column,
            "classes": list(self.classes),
            "map": dict(self.map),
            "weight": self.weight,
        }

    def __str__(self) -> str:
        args: dict[str, object] = {"column": self.column, "classes": self.classes, "map": dict(self.map)}
        return f"{self.name}: {Spec(self.kind, {**args, 'weight': self.weight})}"


def parse_task(text: str) -> Task:
    """Read ``name: kind(column='…', classes=('…', …), map={'…': '…'}, weight=1.0)``; every argument may be left out.

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
        SpecError: An argument that a task does not have, or of another type.
    """
    where = f"task {entry.get('name')!r}"
    known = ("name", "kind", "column", "classes", "map", "weight")
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(known)}"
            raise SpecError(f"{where} has no argument {key!r}", hint=cure)
    name, kind, column = entry.get("name"), entry.get("kind"), entry.get("column", "")
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(column, str):
        raise SpecError(f"{where}: name, kind and column are not all text", hint="give kind = 'multiclass' or another")
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
    return Task(name=name, kind=kind, column=column, classes=tuple(classes), map=dict(mapping), weight=float(weight))


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
    return found


def as_text(value: object) -> str | None:
    """A table value as text, None where missing; 1, 1.0 and "1" are the same."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value).strip() or None


def _label(value: object) -> str | None:
    """As :func:`as_text`, and "1.0", which a table program makes of 1 in a column with gaps, is "1"."""
    text = as_text(value)
    return text if text is None else _WHOLE.sub(r"\1", text)


def _clean_map(mapping: Mapping[str, str | None]) -> dict[str, str | None]:
    return {_label(key) or "": _label(value) for key, value in mapping.items()}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _shown(values: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more
