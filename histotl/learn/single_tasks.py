"""Each task trained alone beside all together: what it gains from the others, and what answers it where it loses.

A task is answered by its own networks where these have the lower validation loss (``nll`` of classes, ``nll_labels`` of
labels, ``mae`` of numbers) beyond chance: where the 95 % interval of the paired difference over patients excludes 0.
The plain difference would not do: validation has chosen the checkpoints and calibrated the answers of both, and of
tasks that neither help nor harm each other half would be moved by chance. Risks, which have no such loss, stay with the
networks of all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from histotl.learn.cohort import Cohort
from histotl.learn.compare import answered, difference
from histotl.learn.config import TrainConfig
from histotl.learn.task import Task
from histotl.learn.trained import Trained

_T = TypeVar("_T")

Comparison = Mapping[str, Mapping[str, Mapping[str, object]]]
"""Task -> metric -> ``multi``, ``single`` and ``delta``."""

LOSSES = ("nll", "nll_labels", "mae")
"""Metrics that are losses: multi less single above 0 speaks for the task's own networks."""


def tasks_alone(cohort: Cohort, config: TrainConfig) -> tuple[Task, ...]:
    """The tasks that are also trained alone: none of a single task, or where nobody asks."""
    tasks = cohort.cases.tasks
    return tuple(task for task in tasks if not task.is_helper) if config.compare_single and len(tasks) > 1 else ()


def train_alone(
    trained: Trained, cohort: Cohort, config: TrainConfig, train: Callable[[Cohort, TrainConfig], Trained]
) -> dict[str, Trained]:
    """Task -> a model of that task alone, trained alike, for those of :func:`tasks_alone`.

    Args:
        trained: All tasks together.
        cohort: What they were trained on.
        config: Settings.
        train: Trains a model on a cohort.
    """
    names = {task.name for task in tasks_alone(cohort, config)}
    tasks = [task for task in trained.model.tasks if task.name in names]
    return {task.name: train(cohort.of_task(task), replace(config, ood=())) for task in tasks}


def compared(
    trained: Trained, alone: Mapping[str, Trained], cohort: Cohort, seed: int
) -> dict[str, dict[str, dict[str, object]]]:
    """What each task gains on val from being trained with the others.

    Args:
        trained: All tasks together.
        alone: From :func:`train_alone`.
        cohort: With the labels of val.
        seed: Of the bootstrap.
    """
    rows, found = cohort.cases.in_split("val"), {}
    patients = [cohort.cases.patients[row] for row in rows]
    for task in trained.model.tasks if alone else ():
        single = alone[task.name]
        found[task.name] = difference(
            task,
            [answered(trained.model, task, trained.answers[task.name])],
            [answered(single.model, task, single.answers[task.name])],
            cohort.cases.targets[task.name][rows],
            patients,
            seed=seed,
        )
    return found


def better_alone(comparison: Comparison) -> tuple[str, ...]:
    """The tasks whose own networks have the lower validation loss beyond chance."""
    return tuple(task for task, metrics in comparison.items() if any(_is_worse(metrics, name) for name in LOSSES))


def _is_worse(metrics: Mapping[str, Mapping[str, object]], name: str) -> bool:
    delta = metrics[name]["delta"] if name in metrics else None
    low = delta["low"] if isinstance(delta, dict) else None
    return low is not None and low > 0


def with_fallback(
    trained: Trained, alone: Mapping[str, Trained], comparison: Comparison, config: TrainConfig
) -> Trained:
    """The same, with the tasks that are :func:`better_alone` answered by their own networks, if the settings want it.

    Args:
        trained: All tasks together.
        alone: From :func:`train_alone`.
        comparison: From :func:`compared`.
        config: Settings.
    """
    names = better_alone(comparison) if config.fallback == "single_task" else ()
    if not names:
        return trained
    model, own = trained.model, {name: alone[name] for name in names}
    models = {name: found.model for name, found in own.items()}
    options = {name: each.tasks[0].options for name, each in models.items()}
    model = replace(
        model,
        # What a task applies to and whose child it is stays as it was; what its head learnt is the other network's.
        tasks=tuple(replace(task, options=options.get(task.name, task.options)) for task in model.tasks),
        facts={**model.facts, **{name: each.facts[name] for name, each in models.items()}},
        calibrations=_with_those_of(model.calibrations, {name: each.calibrations for name, each in models.items()}),
        decisions=_with_those_of(model.decisions, {name: each.decisions for name, each in models.items()}),
        own={name: replace(each, gate=None, extra={}) for name, each in models.items()},
    )
    notes = {
        kind: _with_those_of(said, {name: found.notes[kind] for name, found in own.items()})
        for kind, said in trained.notes.items()
    }
    return replace(
        trained,
        model=model,
        validation={**trained.validation, **{name: found.validation[name] for name, found in own.items()}},
        answers={**trained.answers, **{name: found.answers[name] for name, found in own.items()}},
        notes=notes,
    )


def _with_those_of(ours: Mapping[str, _T], theirs: Mapping[str, Mapping[str, _T]]) -> dict[str, _T]:
    """Task -> something that not every task has, with that of some tasks taken from their own mapping."""
    kept = {name: value for name, value in ours.items() if name not in theirs}
    return kept | {name: found[name] for name, found in theirs.items() if name in found}
