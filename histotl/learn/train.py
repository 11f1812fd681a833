"""The stage ``train``: a label table and features become a model folder."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from histotl.core.allocator import large_blocks_kept
from histotl.core.atomic import atomic_path, write_text
from histotl.core.device import choose_device
from histotl.core.errors import TableError, UsageError
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import file_digest
from histotl.learn.bags import BagStore
from histotl.learn.calibrators import to_dict
from histotl.learn.cohort import Cohort, build_cohort, label_counts
from histotl.learn.cohort_training import train_cohort
from histotl.learn.config import TrainConfig, check_plugins
from histotl.learn.folder import check_folder
from histotl.learn.model import save_model
from histotl.learn.resume import Progress
from histotl.learn.single_tasks import compared, train_alone, with_fallback
from histotl.learn.starting import check_start
from histotl.learn.task import Task, check_names
from histotl.learn.trained import Trained
from histotl.learn.training_sets import Level, training_key

TRAINING_NAME, SPLITS_NAME = "training.json", "splits.csv"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training came to.

    Args:
        folder: The model folder.
        level: ``tile`` or ``slide``.
        cases: Split -> cases used.
        validation: Task -> metric -> value on val, which also chose the checkpoint: optimistic, not a result.
        notes: What of the table and the features was left out, and how the split came about.
        learning_rate: The one kept.
        seconds: Time taken.
        comparison: Task -> metric -> ``multi``, ``single`` and ``delta`` (with its interval) on val, where several
            tasks were trained.
        answered_alone: Tasks that are answered by their own networks, by ``fallback``.
    """

    folder: Path
    level: Level
    cases: Mapping[str, int]
    validation: Mapping[str, Mapping[str, float]]
    notes: Mapping[str, object] = field(default_factory=dict)
    learning_rate: float = 0.0
    seconds: float = 0.0
    comparison: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    answered_alone: tuple[str, ...] = ()


@large_blocks_kept()
def train(
    table: Path | str | pd.DataFrame,
    features: Path | str,
    out: Path | str,
    *,
    tasks: Sequence[Task | str],
    config: TrainConfig | None = None,
    report: Report = silent,
) -> TrainResult:
    """Train heads on cached features.

    Writes to ``out``: the model, ``splits.csv`` (split of every case) and ``training.json`` (label counts, history,
    chosen values, validation metrics). Networks that are finished are kept there until the model is written: the same
    call, made again after an interruption, goes on with what is missing.

    Args:
        table: CSV (or DataFrame) with one row a slide or patch.
        features: Folder (or file) that `histotl embed` wrote.
        out: Model folder; made as needed, an older model in it is replaced.
        tasks: What to predict; a text is read as by :func:`histotl.learn.task.parse_task`.
        config: Settings.
        report: Told of every network trained.

    Raises:
        TableError: The table, or its labels, cannot be used.
        LeakageError: A patient stands in two splits.
        IdentityError: Feature files of several kinds, or with several kinds of views where they are wanted; or others
            than the pretrained aggregator's.
        StoreError: Features, or the pretrained aggregator, missing or damaged.
        UsageError: Settings that contradict each other, or a covariate that is the column of a task.
    """
    config, began, out = config or TrainConfig(), time.monotonic(), Path(out)
    check_folder(out)
    store, level, cohort = prepare(table, features, tasks, config)
    _tell(report, cohort)
    if store.emptied:
        report(Step(stage="train", message=store.what_is_left_out(config.keep)))
    inputs = _inputs(store, table, config)
    progress = Progress(out, training_key(cohort, store, level, config))
    trained = train_cohort(cohort, store, level, config, inputs, report, progress)
    alone = train_alone(
        trained, cohort, config, lambda part, settings: train_cohort(part, store, level, settings, {}, report)
    )
    comparison = compared(trained, alone, cohort, config.seed)
    trained = with_fallback(trained, alone, comparison, config)
    model, values = trained.model, cohort.bags.covariates
    for text in () if values is None else model.covariates.sayings(values):
        report(Step(stage="train", message=text))
    save_model(model, out)
    with atomic_path(out / SPLITS_NAME) as path:
        cohort.split_table(model.id_column).to_csv(path, index=False)
    result = TrainResult(
        folder=out,
        level=level,
        cases={split: len(cohort.cases.in_split(split)) for split in ("train", "val", "test")},
        validation=trained.validation,
        notes=cohort.notes,
        learning_rate=trained.fitted.learning_rate,
        comparison=comparison,
        answered_alone=tuple(model.own),
        seconds=round(time.monotonic() - began, 2),
    )
    _write_training(result, cohort, trained, out)
    progress.clear()
    return result


def preview(
    table: Path | str | pd.DataFrame,
    features: Path | str,
    *,
    tasks: Sequence[Task | str],
    config: TrainConfig | None = None,
) -> dict[str, dict[str, dict[str, int]]]:
    """What :func:`train` would train on: every check is made, nothing is trained or written.

    Returns:
        Task -> split -> class (``labelled`` for regression, ``missing`` for cases without a label) -> cases.

    Raises:
        TableError: As in :func:`train`, and so are LeakageError, IdentityError and StoreError.
    """
    _, _, cohort = prepare(table, features, tasks, config or TrainConfig())
    return label_counts(cohort.cases)


def prepare(
    table: Path | str | pd.DataFrame, features: Path | str, tasks: Sequence[Task | str], config: TrainConfig
) -> tuple[BagStore, Level, Cohort]:
    """Open and join everything, and check what can be checked before the first step of training.

    Raises:
        TableError: As in :func:`train`, and so are LeakageError, IdentityError and StoreError.
    """
    if config.covariate_dropout and not config.covariate:
        fact = f"--covariate-dropout {config.covariate_dropout} without a covariate"
        raise UsageError(fact, hint="add --covariate age, or drop it")
    checked = check_names(tasks, reserved=config.bag)
    check_plugins(config)
    choose_device(config.device)
    store = BagStore.open(
        features,
        more=config.more_features,
        backbone=config.backbone,
        views=config.views,
        keep=config.keep,
        memory_gb=config.memory_gb,
    )
    level = pick_level(config, store)
    try:
        cohort = build_cohort(table, store, checked, config)
    except TableError as error:
        if not store.emptied:
            raise
        # Rows that lack features may lack them only under this condition.
        raise TableError(f"{error.message}; {store.what_is_left_out(config.keep)}", hint=error.hint) from error
    check_start(cohort, store, level, config)
    return store, level, cohort


def pick_level(config: TrainConfig, store: BagStore) -> Level:
    """Whether single rows or bags get answers.

    Raises:
        UsageError: Bags were asked for in a way that the features do not allow.
    """
    if store.kind == "patches" and config.level == "slide" and not config.bag:
        raise UsageError("--level slide on a patch set without bags", hint="add --bag patient, or another column")
    if config.level == "auto":
        return "slide" if store.kind == "slides" or config.bag else "tile"
    return config.level


def _inputs(store: BagStore, table: Path | str | pd.DataFrame, config: TrainConfig) -> dict[str, str]:
    inputs = {f"features:{name}": digest for name, digest in store.digests.items()}
    if not isinstance(table, pd.DataFrame):
        inputs["table"] = file_digest(Path(table), whole=True)
    if config.pretrained:
        inputs["pretrained"] = file_digest(Path(config.pretrained), whole=True)
    return inputs | {f"table:{more}": file_digest(Path(more), whole=True) for more in config.more_tables}


def _tell(report: Report, cohort: Cohort) -> None:
    counts = {split: len(cohort.cases.in_split(split)) for split in ("train", "val", "test")}
    text = ", ".join(f"{n} {split}" for split, n in counts.items())
    for what in ("rows_without_features", "features_without_row", "cases_without_split"):
        if cohort.notes[what]:
            text += f"; {cohort.notes[what]} {what.replace('_', ' ')}"
    if cohort.cases.cohorts:
        text += "; data sets: " + ", ".join(f"{name} {n}" for name, n in Counter(cohort.cases.cohorts).items())
    report(Step(stage="train", message=f"cases: {text}; split: {cohort.notes['split']}"))


def _write_training(result: TrainResult, cohort: Cohort, trained: Trained, out: Path) -> None:
    model, fitted = trained.model, trained.fitted
    calibrations = {name: to_dict(found) for name, found in model.calibrations.items()}
    decisions = {name: found.to_dict() for name, found in model.decisions.items()}
    chosen = {"learning_rate": fitted.learning_rate, "steps": fitted.steps}
    content = {
        "level": result.level,
        "cases": result.cases,
        "label_counts": label_counts(cohort.cases),
        "notes": result.notes,
        "chosen": {**chosen, "calibrations": calibrations, "decisions": decisions, "notes": trained.notes},
        "tried": {f"{rate:g}": loss for rate, loss in fitted.tried.items()},
        "covariates": {} if cohort.bags.covariates is None else model.covariates.account(cohort.bags.covariates),
        "validation": result.validation,
        "compared_with_single_tasks": result.comparison,
        "answered_alone": list(result.answered_alone),
        "history": fitted.history,
        "seconds": result.seconds,
    }
    write_text(out / TRAINING_NAME, json.dumps(content, indent=1, sort_keys=True) + "\n")
