"""Steps that hold some of every data set or class, and of every task.

Cases of one stratum, which is a data set, a class or the labelled cases of a task, are dealt from a deck: in random
order, each once before any comes again. A step of b cases from D data sets has b // D places for each, and what is left
over goes round among them; so every data set is drawn equally often (Mormont, Geurts and Marée 2020, "Multi-task
pre-training of deep neural networks for digital pathology"), and none of its cases more often than another. Cases that
a task is short of take places of their own data set, so that the one law leaves the other as it is.

Classes of a task are drawn in the same way; cases without a label of it come as often as they would anyway, and the
classes share what places they leave. With b = P K that is the sampling of P classes by K cases for losses that compare
cases (Hermans et al. 2017).

An epoch is as many steps as plain sampling makes of the same cases: in it small data sets come several times, and of
large ones a part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.learn.config import TrainConfig
from histotl.learn.labels import hard, known_rows
from histotl.learn.task import Task
from histotl.learn.weights import sampled_task

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """What every step is to hold some of.

    Args:
        groups: int64 (B,): data set or class of each case, 0 to D - 1, each of them there; -1 for a case of none.
        what: What the groups are, in the plural.
        tasks: Names of the T tasks.
        labelled: bool (B, T): which cases have a label of which task.
        least: Labelled cases of each task in every step; 0 for whatever comes.
    """

    groups: Indices
    what: str
    tasks: tuple[str, ...]
    labelled: npt.NDArray[np.bool_]
    least: int = 0

    @property
    def count(self) -> int:
        """D, number of groups."""
        return int(self.groups.max()) + 1

    def check_labels(self) -> None:
        """Refuse tasks with too few labels for a step.

        Raises:
            UsageError: Names the task.
        """
        for task, found in zip(self.tasks, self.labelled.sum(axis=0).tolist(), strict=True):
            if found < self.least:
                fact = f"task {task!r} has {found} labelled training cases, and every step is to hold {self.least}"
                raise UsageError(fact, hint=f"--ensure-tasks {found}, or label more")

    def check(self, size: int) -> None:
        """Refuse what steps of ``size`` cases cannot hold.

        Raises:
            UsageError: Too many groups, too many tasks in one of them, or too few labels of a task.
        """
        self.check_labels()
        places = size // self.count
        if not places:
            fact = f"a step of {size} cases cannot hold one of each of {self.count} {self.what}"
            raise UsageError(fact, hint=f"--batch-size {self.count} or more")
        # A task whose labels lie in several data sets may take all its places from any one of them.
        there = [self.labelled[self.groups == number].any(axis=0).sum() for number in range(self.count)]
        wanted = self.least * int(max(there))
        if wanted > places:
            fact = f"{self.least} labelled cases of each task may be {wanted} of one data set"
            cure = f"--batch-size {wanted * self.count} or more"
            raise UsageError(f"{fact}, a step of {size} has {places} places for each", hint=cure)


def strata_of(
    config: TrainConfig,
    groups: Indices | None,
    targets: Mapping[str, npt.NDArray[np.float64]],
    tasks: Sequence[Task],
) -> Strata | None:
    """What the settings want steps to hold; None where nothing special.

    Args:
        config: Settings.
        groups: int64 (B,): number of the data set of each training case; None where it is not known.
        targets: Their labels.
        tasks: What is predicted.

    Raises:
        UsageError: Data sets are to be balanced, and nothing says which they are; or steps are to follow two laws that
            contradict each other.
    """
    balanced = config.sampling == "dataset_balanced"
    if sampled := sampled_task(tasks, config.class_balance):
        return _classes_of(sampled, config, targets[sampled])
    if not balanced and not config.ensure_tasks:
        return None
    if balanced and groups is None:
        fact = "sampling is dataset_balanced, and nothing says which data set a case is of"
        raise UsageError(fact, hint="name the column of the table that does, such as --cohort-column cohort")
    labelled = np.stack([known_rows(targets[task.name]) for task in tasks], axis=1)
    datasets = np.zeros(len(labelled), dtype=np.int64)
    if balanced and groups is not None:
        # Some data sets may have lost all their cases: those without any label are left out.
        datasets = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    names = tuple(task.name for task in tasks)
    return Strata(groups=datasets, what="data sets", tasks=names, labelled=labelled, least=config.ensure_tasks)


def _classes_of(task: str, config: TrainConfig, target: npt.NDArray[np.float64]) -> Strata:
    """Steps that draw equally from the classes of a task."""
    others = {
        "--sampling dataset_balanced": config.sampling == "dataset_balanced",
        f"--ensure-tasks {config.ensure_tasks}": config.ensure_tasks > 0,
        f"--tiles-per-step {config.tiles_per_step}": config.tiles_per_step > 0,
    }
    for asked, given in others.items():
        if given:
            fact = f"steps are to draw equally from the classes of task {task!r}, and {asked} fills them otherwise"
            raise UsageError(fact, hint="drop one of them; class_balance='balanced' weighs classes in the loss instead")
    groups = np.full(len(target), -1, dtype=np.int64)
    known = known_rows(target)
    groups[known] = np.unique(hard(target[known]), return_inverse=True)[1]
    what = f"classes of task {task!r}"
    return Strata(groups=groups, what=what, tasks=(), labelled=np.zeros((len(target), 0), dtype=bool))


def stratified(strata: Strata, size: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Endless steps of ``size`` cases; a case comes twice in a step only where its group has too few.

    Args:
        strata: What each is to hold.
        size: Cases in a step, which :meth:`Strata.check` found to be enough.
        rng: Of all orders.
    """
    decks = [_Deck(np.flatnonzero(strata.groups == number), rng) for number in range(strata.count)]
    plain = _Deck(np.arange(len(strata.groups)), rng) if (strata.groups < 0).any() else None
    short = [_Deck(np.flatnonzero(has), rng) for has in strata.labelled.T] if strata.least else []
    turns = _Deck(np.arange(len(decks)), rng)
    while True:
        step: list[int] = []
        for deck, has in zip(short, strata.labelled.T, strict=False):
            step += deck.deal(strata.least - int(has[step].sum()), step)
        loose = [] if plain is None else [case for case in plain.deal(size) if strata.groups[case] < 0]
        free = size - len(loose)
        places = np.full(len(decks), free // len(decks)) - np.bincount(strata.groups[step], minlength=len(decks))
        places[turns.deal(free % len(decks))] += 1
        for deck, count in zip(decks, places.tolist(), strict=True):
            step += deck.deal(count, step)
        yield np.array(step + loose, dtype=np.int64)


class _Deck:
    """Some cases, dealt in passes: each once, in random order, before any comes again."""

    def __init__(self, cases: Indices, rng: np.random.Generator) -> None:
        self._cases, self._rng = cases, rng
        self._order, self._next = cases[:0], 0

    def deal(self, count: int, held: Collection[int] = ()) -> list[int]:
        """The next ``count`` cases.

        What the step holds already is passed over, as if dealt. Where a new pass begins within a step, what the step
        holds comes last in it: again in the same step only if there is nothing else.
        """
        dealt, there, again = list[int](), set(held), False
        while len(dealt) < count:
            if self._next == len(self._order):
                order = self._rng.permutation(self._cases)
                seen = np.isin(order, list(there))
                self._order, self._next, again = np.concatenate([order[~seen], order[seen]]), 0, True
            case = int(self._order[self._next])
            self._next += 1
            if again or case not in there:
                dealt.append(case)
                there.add(case)
        return dealt
