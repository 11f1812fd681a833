"""The stage ``train``: a label table and features become a model folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from histotl.core.atomic import atomic_path, write_text
from histotl.core.device import choose_device
from histotl.core.errors import TableError, UsageError
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance, file_digest
from histotl.learn.bags import Bags, BagStore
from histotl.learn.calibrate import calibrate
from histotl.learn.cohort import Cohort, build_cohort, label_counts
from histotl.learn.config import TrainConfig, check_plugins
from histotl.learn.fit import Fitted, Labelled, fit
from histotl.learn.folder import check_folder
from histotl.learn.gate import Gate
from histotl.learn.gate_fit import fit_gate
from histotl.learn.model import Model, save_model
from histotl.learn.resume import Progress, digest
from histotl.learn.scores import validation_scores
from histotl.learn.task import Task, check_names

TRAINING_NAME, SPLITS_NAME = "training.json", "splits.csv"
EVAL_ROWS = 16384
"""Tiles in one pass over the validation cases."""

Level = Literal["tile", "slide"]


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
    """

    folder: Path
    level: Level
    cases: Mapping[str, int]
    validation: Mapping[str, Mapping[str, float]]
    notes: Mapping[str, object] = field(default_factory=dict)
    learning_rate: float = 0.0
    seconds: float = 0.0


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
        IdentityError: Feature files of several kinds, or with several kinds of views where they are wanted.
        StoreError: Features missing or damaged.
    """
    config, began, out = config or TrainConfig(), time.monotonic(), Path(out)
    check_folder(out)
    store, level, cohort = _prepare(table, features, tasks, config)
    _tell(report, cohort)
    if store.emptied:
        report(Step(stage="train", message=store.what_is_left_out(config.keep)))
    train_set, val_set = (_labelled(cohort, split, level, store, config) for split in ("train", "val"))
    aggregator = config.aggregator if level == "slide" else ""
    progress = Progress(out, _key(cohort, store, level, config, (train_set, val_set)))
    fitted = fit(
        train_set,
        val_set,
        tasks=cohort.cases.tasks,
        config=config,
        aggregator=aggregator,
        report=report,
        progress=progress,
    )
    gate = _gate(cohort, store, config)
    model = _model(cohort, store, level, config, fitted, gate, table)
    outputs = _outputs(model, val_set.bags)
    temperatures = calibrate(model.tasks, outputs, val_set.targets)
    model = replace(model, temperatures=temperatures)
    validation = validation_scores(model.tasks, outputs, val_set.targets, temperatures, model.facts)
    save_model(model, out)
    _write_splits(cohort, model.id_column, out)
    result = TrainResult(
        folder=out,
        level=level,
        cases={split: len(cohort.cases.in_split(split)) for split in ("train", "val", "test")},
        validation=validation,
        notes=cohort.notes,
        learning_rate=fitted.learning_rate,
        seconds=round(time.monotonic() - began, 2),
    )
    _write_training(result, cohort, fitted, temperatures, out)
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
    _, _, cohort = _prepare(table, features, tasks, config or TrainConfig())
    return label_counts(cohort.cases)


def _prepare(
    table: Path | str | pd.DataFrame, features: Path | str, tasks: Sequence[Task | str], config: TrainConfig
) -> tuple[BagStore, Level, Cohort]:
    """Check everything that can be checked before the first step of training."""
    checked = check_names(tasks, reserved=config.bag)
    check_plugins(config)
    choose_device(config.device)
    store = BagStore.open(
        features, backbone=config.backbone, views=config.views, keep=config.keep, memory_gb=config.memory_gb
    )
    level = pick_level(config, store)
    try:
        return store, level, build_cohort(table, store, checked, config)
    except TableError as error:
        if not store.emptied:
            raise
        # Rows that lack features may lack them only under this condition.
        raise TableError(f"{error.message}; {store.what_is_left_out(config.keep)}", hint=error.hint) from error


def pick_level(config: TrainConfig, store: BagStore) -> Level:
    """Whether single rows or bags get answers.

    Raises:
        UsageError: Bags were asked for in a way that the features do not allow.
    """
    if store.kind == "slides" and config.bag:
        cure = "drop --bag: a slide is a bag already"
        raise UsageError(f"--bag {config.bag} is for patch sets, these are features of slides", hint=cure)
    if store.kind == "patches" and config.level == "slide" and not config.bag:
        raise UsageError("--level slide on a patch set without bags", hint="add --bag patient, or another column")
    if config.level == "auto":
        return "slide" if store.kind == "slides" or config.bag else "tile"
    return config.level


def _labelled(cohort: Cohort, split: str, level: Level, store: BagStore, config: TrainConfig) -> Labelled:
    rows = cohort.cases.in_split(split)
    bags = cohort.bags.subset(rows)
    targets = {name: target[rows] for name, target in cohort.cases.targets.items()}
    if level == "slide" or store.kind == "patches":
        return Labelled(bags=bags, targets=targets)
    tiles, owner = bags.tiles(config.max_tiles, config.seed)
    return Labelled(bags=tiles, targets={name: target[owner] for name, target in targets.items()})


def _key(cohort: Cohort, store: BagStore, level: Level, config: TrainConfig, labelled: Sequence[Labelled]) -> str:
    """Digest of everything that the networks depend on."""
    # Where and in how much memory it is computed may change between two starts.
    settings = {name: value for name, value in asdict(config).items() if name not in ("device", "memory_gb")}
    versions = Provenance.now()
    # Files of other tools carry no digest of their features.
    files = [
        store.digests.get(path.stem) or [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for path in store.source.paths
    ]
    facts = {
        "config": settings,
        "level": level,
        "tasks": [task.to_dict() for task in cohort.cases.tasks],
        "features": [files, sorted(store.digests.items())],
        "versions": [versions.made_by, versions.libraries.get("torch")],
    }
    arrays = [
        array
        for part in labelled
        for array in (part.bags.rows, part.bags.offsets, *(part.targets[name] for name in sorted(part.targets)))
    ]
    return digest(facts, arrays)


def _gate(cohort: Cohort, store: BagStore, config: TrainConfig) -> Gate | None:
    if not config.ood:
        return None
    cases = cohort.cases
    rows = cases.in_split("train")
    first = next((task for task in cases.tasks if task.is_classification), None)
    labels = None
    if first is not None:
        target = cases.targets[first.name][rows]
        labels = np.where(np.isnan(target), -1, target).astype(np.int64)
    return fit_gate(
        cohort.bags.subset(rows),
        cohort.bags.subset(cases.in_split("val")),
        specs=config.ood,
        labels=labels,
        patients=[cases.patients[row] for row in rows],
        with_tiles=store.kind == "slides" or bool(config.bag),
        alpha=config.alpha,
        seed=config.seed,
    )


def _model(
    cohort: Cohort,
    store: BagStore,
    level: Level,
    config: TrainConfig,
    fitted: Fitted,
    gate: Gate | None,
    table: Path | str | pd.DataFrame,
) -> Model:
    inputs = {f"features:{name}": digest for name, digest in store.digests.items()}
    if not isinstance(table, pd.DataFrame):
        inputs["table"] = file_digest(Path(table), whole=True)
    provenance = Provenance.now(specs={"train": asdict(config)}, inputs=inputs)
    priors = {name: (np.array(f.counts) / sum(f.counts)).tolist() for name, f in fitted.facts.items()}
    return Model(
        tasks=cohort.cases.tasks,
        level=level,
        kind=store.kind,
        bag=config.bag,
        id_column=config.bag or store.id_column,
        identity=store.identity,
        architecture=fitted.architecture,
        members=fitted.members,
        facts=fitted.facts,
        temperatures={},
        gate=gate,
        extra={
            "config": asdict(config),
            "label_counts": label_counts(cohort.cases),
            "priors": priors,
            "notes": cohort.notes,
            "views": None if store.views is None else asdict(store.views),
            "card": None if store.card is None else asdict(store.card),
            "provenance": asdict(provenance),
        },
    )


def _outputs(model: Model, bags: Bags) -> dict[str, list[torch.Tensor]]:
    """Task name -> outputs of each member on all bags."""
    parts = [model.outputs(bags.gather(chunk))[0] for chunk in bags.chunks(EVAL_ROWS)]
    return {
        task.name: [torch.cat([part[task.name][i] for part in parts]) for i in range(len(model.members))]
        for task in model.tasks
    }


def _tell(report: Report, cohort: Cohort) -> None:
    counts = {split: len(cohort.cases.in_split(split)) for split in ("train", "val", "test")}
    text = ", ".join(f"{n} {split}" for split, n in counts.items())
    for what in ("rows_without_features", "features_without_row", "cases_without_split"):
        if cohort.notes[what]:
            text += f"; {cohort.notes[what]} {what.replace('_', ' ')}"
    report(Step(stage="train", message=f"cases: {text}; split: {cohort.notes['split']}"))


def _write_splits(cohort: Cohort, id_column: str, out: Path) -> None:
    with atomic_path(out / SPLITS_NAME) as path:
        cohort.split_table(id_column).to_csv(path, index=False)


def _write_training(
    result: TrainResult, cohort: Cohort, fitted: Fitted, temperatures: Mapping[str, float], out: Path
) -> None:
    content = {
        "level": result.level,
        "cases": result.cases,
        "label_counts": label_counts(cohort.cases),
        "notes": result.notes,
        "chosen": {"learning_rate": fitted.learning_rate, "steps": fitted.steps, "temperatures": dict(temperatures)},
        "tried": {f"{rate:g}": loss for rate, loss in fitted.tried.items()},
        "validation": result.validation,
        "history": fitted.history,
        "seconds": result.seconds,
    }
    write_text(out / TRAINING_NAME, json.dumps(content, indent=1, sort_keys=True) + "\n")
