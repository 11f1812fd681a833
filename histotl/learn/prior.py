"""Class shares that differ between training and use: probabilities moved from one prior to another by Bayes' rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.learn.heads.base import TaskFacts
from histotl.learn.task import Task

Floats = npt.NDArray[np.float64]

_PAIR = re.compile(r"[\s,]*([^=,]+?)\s*=\s*([0-9.eE+-]+)(?=[\s,]|$)")
SUM_SLACK = 1e-3


def parse_priors(texts: Sequence[str], tasks: Sequence[Task]) -> dict[str, Floats]:
    """Shares of each task's classes (k,) from texts such as ``msi: no=0.85 yes=0.15``.

    Of classes all are given and sum to 1; of labels each share is by itself.

    Raises:
        UsageError: No such task or class, one left out, or no shares.
    """
    by_name = {task.name: task for task in tasks if task.classes}
    found: dict[str, Floats] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        task = by_name.get(name.strip())
        if task is None:
            cure = f"name one of: {', '.join(by_name) or 'no task has classes'}"
            raise UsageError(f"prior {text!r}: there is no task {name.strip()!r} with classes", hint=cure)
        found[task.name] = _shares(text, rest, task)
    return found


def _shares(text: str, rest: str, task: Task) -> Floats:
    example = f"{task.name}: {' '.join(f'{name}={1 / task.n_classes:.2g}' for name in task.classes)}"
    if _PAIR.sub("", rest).strip(" ,"):
        raise UsageError(f"prior {text!r} cannot be read", hint=f"write '{example}'")
    given = dict(_PAIR.findall(rest))
    if set(given) != set(task.classes):
        wrong = sorted(set(given) ^ set(task.classes))
        raise UsageError(f"prior {text!r}: class {wrong[0]!r} is unknown or left out", hint=f"write '{example}'")
    try:
        shares = np.array([float(given[name]) for name in task.classes])
    except ValueError as error:
        raise UsageError(f"prior {text!r}: {error}", hint=f"write '{example}'") from error
    inside = bool(((shares > 0) & (shares < 1)).all())
    if not inside or (task.is_classification and abs(shares.sum() - 1) > SUM_SLACK):
        raise UsageError(f"prior {text!r}: {shares.tolist()} are no shares", hint=f"write '{example}', summing to 1")
    return shares / shares.sum() if task.is_classification else shares


def shifted(probabilities: Floats, implied: Floats, wanted: Floats, *, labels: bool = False) -> Floats:
    """Probabilities under another prior: p(k) wanted(k) / implied(k), scaled to sum to 1.

    It holds where the cases of a class look alike in training and use, and only their shares differ (Saerens et al.
    2002).

    Args:
        probabilities: (n, k).
        implied: Shares (k,) that the probabilities take for granted.
        wanted: Shares (k,) where they are used.
        labels: Each column is a probability by itself.
    """
    ratio = wanted / np.maximum(implied, 1e-12)
    if labels:
        against = (1 - wanted) / np.maximum(1 - implied, 1e-12)
        return np.asarray(probabilities * ratio / (probabilities * ratio + (1 - probabilities) * against))
    moved = probabilities * ratio
    return np.asarray(moved / moved.sum(axis=1, keepdims=True))


def with_priors(
    answers: Mapping[str, Floats], tasks: Sequence[Task], facts: Mapping[str, TaskFacts], priors: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Answers of all tasks, those with another prior shifted to it."""
    moved = dict(answers)
    for task in tasks:
        if task.name in priors and task.name in moved:
            labels = task.nature.answers == "labels"
            implied = np.asarray(facts[task.name].implied)
            if not len(implied):
                fact = f"the model does not say what shares of {task.name!r} it was trained for"
                raise UsageError(fact, hint="train again with this version")
            moved[task.name] = shifted(moved[task.name], implied, priors[task.name], labels=labels)
    return moved
