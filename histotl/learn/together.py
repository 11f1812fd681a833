"""Cross-validation's networks, trained together: what :func:`histotl.learn.fit.fit` makes one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.device import choose_device
from histotl.core.progress import Report, silent
from histotl.learn.bags import BagStore
from histotl.learn.cohort import Cohort
from histotl.learn.config import TrainConfig
from histotl.learn.cross_config import Together
from histotl.learn.fit import Fitted, Labelled
from histotl.learn.heads.base import is_joint
from histotl.learn.labels import known_rows
from histotl.learn.sweep import Entry, Swept, can_sweep, sweep
from histotl.learn.task import Task
from histotl.learn.training_sets import Level, labelled_rows

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Deal:
    """The same cases, dealt in one way.

    Args:
        splits: Split of each case of the cohort.
        seed: Of the first weights.
    """

    splits: tuple[str, ...]
    seed: int


def is_together(choice: Together, config: TrainConfig, aggregator: str, tasks: Sequence[Task]) -> bool:
    """Whether networks are trained together: where it is asked for, or where it pays (on a GPU) and can be done."""
    if choice != "auto":
        return choice == "yes"
    on_gpu = choose_device(config.device).type == "cuda"
    return on_gpu and can_sweep(config, aggregator) and not any(is_joint(task.head) for task in tasks)


def fit_together(
    cohort: Cohort,
    deals: Sequence[Deal],
    store: BagStore,
    level: Level,
    config: TrainConfig,
    report: Report = silent,
) -> list[Fitted]:
    """The members of every deal.

    Each tries all learning rates with its first member and goes on with the best of its own, as training alone does.
    Steps and dropout are those of ``config.seed`` in all deals; only folds and first weights differ between seeds.

    Args:
        cohort: All cases.
        deals: Which of them train and validate, and the seed.
        store: Their features.
        level: Whether rows or bags get answers.
        config: Settings.
        report: Told of every look at the validation cases.

    Returns:
        One result for each deal, in their order.

    Raises:
        UsageError: Networks of these settings cannot be trained together.
        TableError: A task has no label in the training cases of a deal, or no validation case has a label.
    """
    every = np.arange(len(cohort.cases.ids), dtype=np.int64)
    labelled = labelled_rows(cohort, every, level, store, config)
    owner = every if labelled.owner is None else labelled.owner
    parts = [_parts(labelled, owner, deal) for deal in deals]
    aggregator = config.aggregator if level == "slide" else ""

    def swept(chosen: Sequence[tuple[int, int, float]]) -> list[Swept]:
        """Networks of (deal, member, rate)."""
        entries = [
            Entry(train=parts[deal][0], val=parts[deal][1], seed=deals[deal].seed * 1000 + member, rate=rate)
            for deal, member, rate in chosen
        ]
        tasks = cohort.cases.tasks
        return sweep(labelled, entries, tasks=tasks, config=config, aggregator=aggregator, report=report)

    rates = config.learning_rates
    tried = swept([(deal, 0, rate) for deal in range(len(deals)) for rate in rates])
    firsts = [dict(zip(rates, tried[at : at + len(rates)], strict=True)) for at in range(0, len(tried), len(rates))]
    best = [min((found.loss, rate) for rate, found in first.items())[1] for first in firsts]
    more = [(deal, member, best[deal]) for deal in range(len(deals)) for member in range(1, config.members)]
    others = swept(more) if more else []
    each = config.members - 1
    return [
        _fitted(first, rate, others[each * deal : each * (deal + 1)])
        for deal, (first, rate) in enumerate(zip(firsts, best, strict=True))
    ]


def _parts(labelled: Labelled, owner: Indices, deal: Deal) -> tuple[Indices, Indices]:
    """Bags that train and that validate; those without any label have no part in it."""
    known = np.any([known_rows(target) for target in labelled.targets.values()], axis=0)
    split = np.array(deal.splits, dtype=object)[owner]
    train, val = (np.flatnonzero(known & (split == name)).astype(np.int64) for name in ("train", "val"))
    return train, val


def _fitted(first: dict[float, Swept], rate: float, others: Sequence[Swept]) -> Fitted:
    kept = [first[rate], *others]
    runs = [(0, tried, found) for tried, found in first.items()]
    runs += [(member, rate, found) for member, found in enumerate(others, start=1)]
    return Fitted(
        members=tuple(found.network for found in kept),
        architecture=kept[0].architecture,
        facts=kept[0].facts,
        learning_rate=rate,
        tried={tried: found.loss for tried, found in first.items()},
        history=[{"member": m, "learning_rate": r, **look} for m, r, found in runs for look in found.history],
        steps=kept[0].steps,
        tasks=kept[0].tasks,
        covariates=kept[0].covariates,
    )
