"""What the verbs that train have in common: the tasks, and how they do beside models of one task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histotl.cli._console import print_table
from histotl.core.errors import UsageError

if TYPE_CHECKING:
    from histotl.learn.task import Task


def tasks_of(task: tuple[str, ...], tasks: Path | None) -> tuple[Task, ...]:
    """The tasks that the flags name.

    Raises:
        UsageError: None, or by both flags.
        SpecError: A text or the file cannot be read.
    """
    from histotl.learn.task import parse_task, tasks_from_toml

    if task and tasks is not None:
        raise UsageError("tasks are given by --task and by --tasks", hint="use one of the two")
    if not task and tasks is None:
        cure = "--task \"label: multiclass(column='label')\" (repeat for more), or --tasks FILE.toml"
        raise UsageError("no task is given", hint=cure)
    return tasks_from_toml(tasks) if tasks is not None else tuple(parse_task(text) for text in task)


def print_comparison(comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """A row a task and metric: all tasks together, the task alone, and the difference with its interval."""
    rows = [
        (task, metric, f"{found['multi']:.3f}", f"{found['single']:.3f}", _delta(found["delta"]))
        for task, metrics in comparison.items()
        for metric, found in metrics.items()
    ]
    if rows:
        print_table(["task", "metric", "all tasks", "alone", "difference (95 %)"], rows)


def _delta(delta: Mapping[str, float | None]) -> str:
    low, high = delta["low"], delta["high"]
    interval = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{delta['value']:+.3f}{interval}"
