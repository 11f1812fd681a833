"""What training labels say about a task: counts, class weights, priors, and the loss of the constant predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import TableError, UsageError
from histotl.learn.config import ClassBalance
from histotl.learn.heads.base import Adjustable, Floats, Head, Joint, TaskFacts
from histotl.learn.labels import hard, known_rows
from histotl.learn.task import Task

EFFECTIVE_BETA = 0.999
"""Overlap of rows of a class in its effective number (1 - beta^n) / (1 - beta) (Cui et al. 2019)."""

TAU = 1.0
"""Strength of logit adjustment; 1 is the one that is consistent for the balanced error (Menon et al. 2021)."""


def class_weights(counts: npt.NDArray[np.number], balance: ClassBalance = "balanced") -> npt.NDArray[np.float64]:
    """Weights that sum to n over the rows, so that the scale of the loss stays; 0 for a class without rows.

    ``balanced``: n / (k n_c), every class has the same say, as it has where classes are ``sampled``. ``effective``: in
    proportion to 1 / (1 - beta^n_c), which lies between that and none for classes of hundreds. Else 1.
    """
    present = counts > 0
    weights = np.zeros(len(counts))
    if balance in ("balanced", "sampled"):
        weights[present] = counts.sum() / (present.sum() * counts[present])
    elif balance == "effective":
        weights[present] = 1 / -np.expm1(counts[present] * math.log(EFFECTIVE_BETA))
        weights *= counts.sum() / (weights * counts).sum()
    else:
        weights[present] = 1.0
    return weights


def sampled_task(tasks: Sequence[Task], balance: ClassBalance) -> str:
    """Name of the task of whose classes every step draws equally many cases; empty for none.

    Args:
        tasks: All that are trained together.
        balance: Of the training.

    Raises:
        UsageError: Several tasks, or one without classes.
    """
    named = [task for task in tasks if task.class_balance == "sampled"]
    for task in named:
        if not task.is_classification:
            fact = f"task {task.name!r} has class_balance='sampled', and not one class a case"
            raise UsageError(fact, hint="drop it: only classes can be drawn equally")
    if not named and balance == "sampled":
        named = [task for task in tasks if task.is_classification and not task.is_helper and not task.class_balance]
    if len(named) > 1:
        fact = f"steps cannot draw equally from the classes of {len(named)} tasks: {', '.join(t.name for t in named)}"
        raise UsageError(fact, hint="say class_balance='sampled' of one task, and leave it out of the settings")
    return named[0].name if named else ""


def facts_of(task: Task, target: Floats, head: Head, balance: ClassBalance) -> TaskFacts:
    """What the labelled rows say.

    Args:
        task: Whose labels.
        target: (n,) or (n, c), NaN where missing.
        head: After :meth:`~histotl.learn.heads.base.Learning.learn`.
        balance: Of the training; the task's own goes first.

    Raises:
        TableError: No labelled row, or all numbers equal or too large.
        UsageError: Logit adjustment of a head that has none.
    """
    known = target[known_rows(target)]
    answers = task.nature.answers
    if answers == "number":
        return _number_facts(task, known, head)
    if answers == "risk":
        loss = _constant_loss(head, torch.from_numpy(known), 0)
        return TaskFacts(counts=(int((known[:, 1] > 0).sum()),), prior_loss=loss)
    balance = task.class_balance or balance
    if balance == "logit_adjust" and not isinstance(head, Adjustable):
        cure = "add class_balance='balanced' or 'none' to the task"
        raise UsageError(f"task {task.name!r}: a {task.kind} task has no logits to adjust", hint=cure)
    return _label_facts(task, known, head, balance) if answers == "labels" else _class_facts(task, known, head, balance)


def _class_facts(task: Task, known: Floats, head: Head, balance: ClassBalance) -> TaskFacts:
    k = task.n_classes
    counts = np.bincount(hard(known).astype(np.int64), minlength=k)
    mass = counts.astype(np.float64) if known.ndim == 1 else known.sum(axis=0)
    weights = class_weights(mass, balance)
    share = mass * weights / (mass * weights).sum()
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    prior = mass / mass.sum()
    # Rows of one class have one loss, so k rows stand for all.
    classes, scale = torch.arange(k), torch.from_numpy(mass * weights / mass.sum())
    found = _constant_loss(head, classes, k, scale)
    # The best constant of a log loss costs the entropy, of which the search finds all digits but the last ones.
    exact = entropy if math.isclose(found, entropy, rel_tol=1e-5) else found
    implied = np.full(k, 1 / k) if balance == "logit_adjust" else share
    return TaskFacts(
        counts=tuple(counts.tolist()),
        class_weight=tuple(weights.tolist()) if balance in ("balanced", "effective", "sampled") else (),
        # One class only has no entropy, and a head may have no loss a row; what it learns by then counts in nats.
        prior_loss=exact if entropy and exact > 0 else 1.0,
        prior=tuple(prior.tolist()),
        implied=tuple(implied.tolist()),
    )


def _label_facts(task: Task, known: Floats, head: Head, balance: ClassBalance) -> TaskFacts:
    counts = np.stack([(known == 0).sum(axis=0), (known == 1).sum(axis=0)])
    lacking = [name for name, n in zip(task.classes, counts.sum(axis=0), strict=True) if not n]
    if lacking:
        cure = "label some rows, or drop it from classes="
        raise TableError(f"task {task.name!r}: no row in train says anything about {lacking[0]!r}", hint=cure)
    weights = np.stack([class_weights(pair, balance) for pair in counts.T], axis=1)
    prior = counts[1] / counts.sum(axis=0)
    mass = counts * weights
    both = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, task.n_classes)
    loss = _constant_loss(head, both, task.n_classes, torch.from_numpy(mass / counts.sum()))
    implied = np.full(task.n_classes, 0.5) if balance == "logit_adjust" else mass[1] / mass.sum(axis=0)
    return TaskFacts(
        counts=tuple(counts[1].tolist()),
        class_weight=tuple(weights.ravel().tolist()) if balance in ("balanced", "effective") else (),
        # Labels that are all alike have no entropy either.
        prior_loss=loss if ((prior > 0) & (prior < 1)).any() else 1.0,
        prior=tuple(prior.tolist()),
        implied=tuple(implied.tolist()),
    )


def _number_facts(task: Task, known: Floats, head: Head) -> TaskFacts:
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(known.mean()), float(known.std())
    if not np.isfinite(std):
        fact = f"task {task.name!r}: numbers up to {np.abs(known).max():g} are too large to learn from"
        raise TableError(fact, hint="give them in a larger unit, or map wrong ones to None")
    if not std > 0:
        raise TableError(f"task {task.name!r}: all {len(known)} numbers are {mean:g}", hint="drop the task")
    standard = torch.tensor((known - mean) / std, dtype=torch.float64)
    zeros = torch.zeros(len(known), head.n_outputs(0), dtype=torch.float64)
    loss = float(head.row_losses(zeros, standard, None).mean())
    return TaskFacts(counts=(len(known),), prior_loss=loss, mean=mean, std=std)


def _constant_loss(head: Head, target: torch.Tensor, n_classes: int, scale: torch.Tensor | None = None) -> float:
    """Least loss of outputs that are the same for all rows.

    Args:
        head: Whose loss.
        target: Of the rows.
        n_classes: Of the task.
        scale: What each row (or entry) counts; None for the mean.
    """
    outputs = torch.zeros(head.n_outputs(n_classes), dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        rows = outputs.expand(len(target), -1)
        if isinstance(head, Joint) and head.joint:
            found = head.joint_loss(rows, target)
            return outputs.sum() * 0 if found is None else found
        losses = head.row_losses(rows, target, None)
        return losses.mean() if scale is None else (losses * scale).sum()

    search = torch.optim.LBFGS([outputs], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        search.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    return loss().item()
