"""What training starts from, and whether it can start: what is known before the first step, made sure of there."""

from __future__ import annotations

from histotl.core.errors import UsageError
from histotl.learn.bags import BagStore
from histotl.learn.cohort import Cohort
from histotl.learn.config import TrainConfig
from histotl.learn.objective import Objective
from histotl.learn.pretrained import Pretrained, choose_aggregator, load_aggregator
from histotl.learn.strata import strata_of
from histotl.learn.training_sets import Level, labelled_part
from histotl.learn.weights import sampled_task


def pretrained_of(store: BagStore, level: Level, config: TrainConfig) -> Pretrained | None:
    """The aggregator that the settings start from; None without one.

    Raises:
        UsageError: Tiles are answered for, which are not aggregated; or another aggregator is asked for as well.
        IdentityError: It was trained on other features.
        StoreError: There is no such file, or it is damaged.
    """
    if not config.pretrained:
        return None
    if level == "tile":
        raise UsageError("--pretrained with answers for tiles", hint="drop it, or train slides or bags: --bag patient")
    found = load_aggregator(config.pretrained)
    found.check(store.identity, store.dim)
    choose_aggregator(config.aggregator, TrainConfig.aggregator, found)
    return found


def check_start(cohort: Cohort, store: BagStore, level: Level, config: TrainConfig) -> None:
    """Refuse what training would refuse after the first features are read.

    Raises:
        UsageError: The pretrained aggregator is not for these tasks; or a task has too few labels for every step.
        IdentityError: As in :func:`pretrained_of`, and so is StoreError.
    """
    tasks, start = cohort.cases.tasks, pretrained_of(store, level, config)
    if start is not None:
        rows = cohort.cases.in_split("train")
        targets = {name: target[rows] for name, target in cohort.cases.targets.items()}
        start.check_tasks(Objective(tasks, targets, class_balance=config.class_balance).n_outputs())
        if config.compare_single and len(tasks) > 1 and start.is_bound():
            fact = f"the pretrained {start.spec} answers for its {len(tasks)} tasks, and cannot for one of them alone"
            raise UsageError(fact, hint="--no-compare-single leaves out the comparison with single tasks")
    if config.ensure_tasks or sampled_task(tasks, config.class_balance):
        train_set = labelled_part(cohort, "train", level, store, config).known()
        strata = strata_of(config, train_set.groups, train_set.targets, tasks)
        if strata is not None:
            strata.check_labels()
