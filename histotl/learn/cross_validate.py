"""The stage ``crossval``: every patient is tested by models that never saw them, K folds times S seeds.

In each seed the patients are dealt anew into K folds with the labels of all tasks spread evenly. For fold f a model is
trained on the others, validated (checkpoint, calibration, thresholds, sets) on fold f + 1, and answers for fold f. The
answers of a seed's K models make one predictions folder that ``histotl evaluate`` reads. Cases that the table marks as
``test`` stay out of everything, so that cross-validation cannot use them up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.allocator import large_blocks_kept
from histotl.core.atomic import write_text
from histotl.core.intervals import Estimate
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance
from histotl.learn.bags import BagStore
from histotl.learn.cohort import Cohort
from histotl.learn.cohort_training import completed, train_cohort
from histotl.learn.compare import Answered, answered, difference, estimates, mean_draws
from histotl.learn.config import TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.fit import Fitted
from histotl.learn.folder import check_folder
from histotl.learn.model import Model
from histotl.learn.predict import case_columns
from histotl.learn.predictions import write_predictions
from histotl.learn.single_tasks import compared, tasks_alone, train_alone, with_fallback
from histotl.learn.split import fold_patients
from histotl.learn.task import Task
from histotl.learn.together import Deal, fit_together, is_together
from histotl.learn.train import prepare
from histotl.learn.trained import EVAL_ROWS, Trained, case_answers
from histotl.learn.training_sets import Level

SUMMARY_NAME = "crossval.json"

ALL = ""
"""Stands for all tasks where others stand for one."""


@dataclass(frozen=True, kw_only=True)
class CrossResult:
    """What cross-validation came to.

    Args:
        folder: Where.
        predictions: Predictions folder of each seed.
        metrics: Task -> metric -> mean over the seeds on all cases, with patient-bootstrap interval.
        by_seed: Task -> metric -> value of each seed.
        comparison: Task -> metric -> ``multi``, ``single``, ``delta``; empty for one task, or when not asked for.
    """

    folder: Path
    predictions: tuple[Path, ...]
    metrics: Mapping[str, Mapping[str, Estimate]]
    by_seed: Mapping[str, Mapping[str, Sequence[float]]]
    comparison: Mapping[str, Mapping[str, Mapping[str, object]]]


@large_blocks_kept()
def cross_validate(
    table: Path | str | pd.DataFrame,
    features: Path | str,
    out: Path | str,
    *,
    tasks: Sequence[Task | str],
    config: TrainConfig | None = None,
    cross: CrossConfig | None = None,
    report: Report = silent,
) -> CrossResult:
    """Train and test on all patients in turn.

    Args:
        table: As for :func:`histotl.learn.train.train`; of its split column only ``test`` matters.
        features: The same.
        out: Folder for ``seed_<s>/`` (predictions) and ``crossval.json``.
        tasks: What to predict.
        config: How models are trained; with ``compare_single`` each task is also trained alone in every fold.
        cross: How many folds and seeds.
        report: Told after every fold.

    Raises:
        UsageError: Fewer patients than folds.
        TableError: A fold's training cases lack a class; and as for train.
        LeakageError: A patient stands in two folds.
    """
    config, cross, out = config or TrainConfig(), cross or CrossConfig(), Path(out)
    check_folder(out)
    store, level, cohort = prepare(table, features, tasks, config)
    cohort = _without_test(cohort)
    configs = [replace(config, seed=config.seed + number) for number in range(cross.seeds)]
    dealt = [[cohort.with_splits(splits) for splits in _deal(cohort, seeded, cross)] for seeded in configs]
    fitted = _fitted(cohort, dealt, store, level, config, cross, report)
    seeds, folders = list[list[_Fold]](), list[Path]()
    for number, seeded in enumerate(configs):
        seeds.append([])
        for fold, of_fold in enumerate(dealt[number]):
            done, total = number * cross.folds + fold + 1, cross.seeds * cross.folds
            own = {name: networks[done - 1] for name, networks in fitted.items()}
            seeds[-1].append(_run(of_fold, store, level, seeded, fold, own))
            report(Step(stage="crossval", done=done, total=total, item=f"seed {seeded.seed}, fold {fold}"))
        folders.append(out / f"seed_{seeded.seed}")
        _write_seed(folders[-1], seeds[-1], features, seeded, cross)
    result = _summary(cohort, seeds, folders, out, seed=config.seed)
    _write(result, cohort, config, cross)
    return result


def _without_test(cohort: Cohort) -> Cohort:
    if cohort.split_made:
        return cohort
    return cohort.subset(np.flatnonzero(np.array(cohort.cases.splits, dtype=object) != "test").astype(np.int64))


def _deal(cohort: Cohort, config: TrainConfig, cross: CrossConfig) -> list[list[str]]:
    """Split of every case for each fold of a seed: the fold is tested, the next one validates."""
    cases = cohort.cases
    place = fold_patients(
        cases.patients, cases.tasks, cases.targets, folds=cross.folds, seed=config.seed, groups=cases.groups()
    ).tolist()
    parts = [{fold: "test", (fold + 1) % cross.folds: "val"} for fold in range(cross.folds)]
    return [[part.get(fold, "train") for fold in place] for part in parts]


def _fitted(
    cohort: Cohort,
    dealt: Sequence[Sequence[Cohort]],
    store: BagStore,
    level: Level,
    config: TrainConfig,
    cross: CrossConfig,
    report: Report,
) -> dict[str, list[Fitted]]:
    """Networks of all folds, seed by seed, where they are trained together: of all tasks (""), and of each alone."""
    deals = [
        Deal(splits=of_fold.cases.splits, seed=config.seed + number)
        for number, folds in enumerate(dealt)
        for of_fold in folds
    ]
    wanted = {ALL: cohort} | {task.name: cohort.of_task(task) for task in tasks_alone(cohort, config)}
    aggregator = config.aggregator if level == "slide" else ""
    return {
        name: fit_together(part, deals, store, level, config, report)
        for name, part in wanted.items()
        if is_together(cross.together, config, aggregator, part.cases.tasks)
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    """What one fold's models answered for its cases.

    Args:
        rows: Places of the cases in the cohort.
        frame: Their predictions.
        model: Of all tasks.
        multi: Task -> its answers.
        single: Task -> answers of the task's own model; empty when there are none.
    """

    rows: npt.NDArray[np.int64]
    frame: pd.DataFrame
    model: Model
    multi: dict[str, Answered]
    single: dict[str, Answered]


def _run(
    cohort: Cohort, store: BagStore, level: Level, config: TrainConfig, fold: int, fitted: Mapping[str, Fitted]
) -> _Fold:
    """Answer for the fold's cases, the test cases of a cohort, by networks trained before or here."""

    def trained_on(part: Cohort, settings: TrainConfig, name: str) -> Trained:
        done = fitted.get(name)
        if done is None:
            return train_cohort(part, store, level, settings, {})
        return completed(done, part, store, level, settings, {})

    trained = trained_on(cohort, config, ALL)
    alone = train_alone(
        trained, cohort, config, lambda part, settings: trained_on(part, settings, part.cases.tasks[0].name)
    )
    if config.fallback != "none":
        trained = with_fallback(trained, alone, compared(trained, alone, cohort, config.seed), config)
    model = trained.model
    rows = cohort.cases.in_split("test")
    bags, frames, done = cohort.bags.subset(rows), [], 0
    for chunk in bags.chunks(EVAL_ROWS):
        ids = tuple(cohort.cases.ids[row] for row in rows[done : done + len(chunk)].tolist())
        columns = case_columns(model, bags.gather(chunk), (), ids, None, {})
        frames.append(pd.DataFrame({model.id_column: ids, **columns, "fold": fold}))
        done += len(chunk)
    answers = case_answers(model, bags)
    multi = {task.name: answered(model, task, answers[task.name]) for task in model.tasks}
    single = {}
    for task in model.tasks if alone else ():
        other = alone[task.name].model
        single[task.name] = answered(other, task, case_answers(other, bags)[task.name])
    return _Fold(rows=rows, frame=pd.concat(frames), model=model, multi=multi, single=single)


def _in_order(folds: Sequence[_Fold], parts: Sequence[Answered]) -> Answered:
    """Answers of all folds in the order of the cohort."""
    order = np.argsort(np.concatenate([fold.rows for fold in folds]))
    values, decided = (np.concatenate([part[i] for part in parts])[order] for i in (0, 1))
    return values, decided


def _write_seed(
    folder: Path, folds: Sequence[_Fold], features: Path | str, config: TrainConfig, cross: CrossConfig
) -> None:
    model = folds[0].model
    frame = pd.concat([fold.frame for fold in folds], ignore_index=True)
    frame = frame.iloc[np.argsort(np.concatenate([fold.rows for fold in folds]))].reset_index(drop=True)
    # Every case was unseen by the model that answered for it.
    frame["model_split"] = "test"
    provenance = Provenance.now(specs={"train": asdict(config), "crossval": asdict(cross)})
    meta = {
        "model": f"{cross.folds} models of cross-validation, seed {config.seed}",
        "identity_digest": None if model.identity is None else model.identity.digest,
        "level": model.level,
        "kind": model.kind,
        "bag": model.bag,
        "table_id_column": "" if model.bag else config.id_column,
        "features": str(features),
        "backbone": config.backbone,
        "aggregator": model.architecture.aggregator,
        "alpha": None if model.gate is None else model.gate.alpha,
        "provenance": asdict(provenance),
    }
    write_predictions(folder, frame, tasks=model.tasks, id_column=model.id_column, meta=meta)


def _summary(
    cohort: Cohort, seeds: Sequence[Sequence[_Fold]], folders: Sequence[Path], out: Path, *, seed: int
) -> CrossResult:
    metrics, by_seed, comparison = {}, {}, {}
    patients = cohort.cases.patients
    for task in seeds[0][0].model.tasks:
        truth = cohort.cases.targets[task.name]
        multi = [_in_order(folds, [fold.multi[task.name] for fold in folds]) for folds in seeds]
        metrics[task.name] = estimates(task, multi, truth, patients, seed=seed)
        each = [mean_draws(task, [one], truth, patients, seed=seed) for one in multi]
        by_seed[task.name] = {name: [float(found[name][0]) for found in each] for name in each[0]}
        if seeds[0][0].single:
            single = [_in_order(folds, [fold.single[task.name] for fold in folds]) for folds in seeds]
            comparison[task.name] = difference(task, multi, single, truth, patients, seed=seed)
    return CrossResult(folder=out, predictions=tuple(folders), metrics=metrics, by_seed=by_seed, comparison=comparison)


def _write(result: CrossResult, cohort: Cohort, config: TrainConfig, cross: CrossConfig) -> None:
    content = {
        "folds": cross.folds,
        "seeds": [config.seed + i for i in range(cross.seeds)],
        "cases": len(cohort.cases.ids),
        "patients": len(set(cohort.cases.patients)),
        "metrics": {t: {n: value.to_dict() for n, value in found.items()} for t, found in result.metrics.items()},
        "by_seed": result.by_seed,
        "compared_with_single_tasks": result.comparison,
        "notes": cohort.notes,
        "provenance": asdict(Provenance.now(specs={"train": asdict(config), "crossval": asdict(cross)})),
    }
    write_text(result.folder / SUMMARY_NAME, json.dumps(content, indent=1, default=str) + "\n")
