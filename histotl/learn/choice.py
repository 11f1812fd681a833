"""What users give as settings, brought into one form: lists, paths, and which cases are meant."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, TypeVar

from histotl.core.condition import Condition
from histotl.core.errors import UsageError

T = TypeVar("T")


class Choice(Protocol):
    """Settings that name cases."""

    @property
    def table(self) -> str:
        """CSV that names them; empty for all."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Only those of these splits of the table."""

    @property
    def keep(self) -> str:
        """Condition on the quality figures of their tiles."""


def settle(choice: Choice) -> None:
    """Bring table and splits into their form, in place; called while frozen settings are made.

    Raises:
        UsageError: Splits without a table, a table that is no path, or a condition that cannot be read.
    """
    object.__setattr__(choice, "table", as_path(choice.table, "table"))
    object.__setattr__(choice, "splits", tuple(split.strip().lower() for split in as_tuple(choice.splits)))
    if choice.keep:
        Condition.parse(choice.keep)
    if choice.splits and not choice.table:
        cure = "add --table TABLE.csv with a column split"
        raise UsageError(f"--splits {' '.join(choice.splits)} without a table", hint=cure)


def as_tuple(value: Sequence[T] | str) -> tuple[T | str, ...]:
    """A list from a notebook as a tuple; one text is one item, not its letters."""
    return (value,) if isinstance(value, str) else tuple(value)


def as_paths(value: Sequence[str | PathLike[str]] | str | PathLike[str], name: str) -> tuple[str, ...]:
    """One path or several as texts.

    Raises:
        UsageError: One is no path; ``name`` is the setting's, for the message.
    """
    places = (value,) if isinstance(value, str | PathLike) else value
    return tuple(as_path(place, name) for place in places)


def as_path(value: object, name: str) -> str:
    """A path as text.

    Raises:
        UsageError: It is none; ``name`` is the setting's, for the message.
    """
    if not isinstance(value, str | PathLike):
        raise UsageError(f"{name} is a {type(value).__name__}", hint="give the path of a file")
    return str(value)
