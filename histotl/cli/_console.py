"""What a person sees: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from histotl.core.errors import HistotlError
from histotl.core.progress import Step

EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_PIPE_WIDTH = 10_000

_PLAIN_INTERVAL_S = 10.0
"""How often a log file or a cluster's output gets a line; a terminal has a bar instead."""


def out() -> Console:
    """Console on stdout; made anew so that redirection in tests and notebooks is seen."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def err() -> Console:
    """Console on stderr."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_error(error: HistotlError) -> None:
    """The fact in red, the cure below it. Printed without markup: names come from users."""
    console = err()
    console.print("error:", style="bold red", end=" ")
    console.print(error.message, markup=False)
    if error.hint:
        console.print("  hint:", style="bold", end=" ")
        console.print(error.hint, markup=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A plain table on stdout; numbers to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    kept = [tuple(row) for row in rows]
    for i, column in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[i], int | float) for row in kept)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*(_plain(cell) for cell in row))
    if sys.stdout.isatty():
        Console(file=sys.stdout, highlight=False).print(table, markup=False)
        return
    # A pipe has no width of its own: every column is as wide as its text, so that a row is a line for grep.
    text = io.StringIO()
    Console(file=text, highlight=False, width=_PIPE_WIDTH).print(table, markup=False)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


class ProgressBar:
    """Draws the steps that a stage reports: a bar on a terminal, a line now and then elsewhere.

    Use as a context manager; the instance itself is the stage's ``report`` callable.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = err()
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]}", markup=True),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[item]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, step: Step) -> None:
        """Show one step."""
        if self._quiet:
            return
        now = time.monotonic()
        began = self._began.setdefault(step.stage, now)
        rate = _rate(step, now - began)
        if step.message:
            self._console.print(step.message, markup=False)
        if self._live:
            if step.stage not in self._tasks:
                self._tasks[step.stage] = self._bar.add_task("", stage=step.stage, rate="", item="", total=None)
            task, total = self._tasks[step.stage], step.total or None
            self._bar.update(task, completed=step.done, total=total, rate=rate, item=step.item[-40:])
        elif now - self._last_line > _PLAIN_INTERVAL_S:
            self._last_line = now
            eta = _eta(step, now - began)
            self._console.print(f"{step.stage} {step.done}/{step.total} {rate} {eta} {step.item}", markup=False)


def _rate(step: Step, seconds: float) -> str:
    if not step.units or seconds < 0.5:
        return ""
    return f"{step.units_done / seconds:.0f} {step.units}/s"


def _eta(step: Step, seconds: float) -> str:
    if not 0 < step.done < step.total:
        return ""
    left = seconds / step.done * (step.total - step.done)
    return f"ETA {left // 60:.0f}:{left % 60:02.0f}"


def _plain(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
