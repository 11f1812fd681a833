"""From cases with splits to a model in memory: networks, gate, calibration, decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance
from histotl.learn.bags import BagStore
from histotl.learn.calibrate import calibrate, stated
from histotl.learn.cohort import Cohort, label_counts
from histotl.learn.config import TrainConfig
from histotl.learn.decisions import fit_decisions
from histotl.learn.finishing import finished, outputs_of, without_auxiliary
from histotl.learn.fit import Fitted, fit
from histotl.learn.gate import Gate
from histotl.learn.gate_fit import fit_gate
from histotl.learn.heads.base import Recalling
from histotl.learn.labels import hard
from histotl.learn.model import Model
from histotl.learn.neighbours import TRAIN_CASES
from histotl.learn.pretrained import choose_aggregator
from histotl.learn.resume import Progress
from histotl.learn.scores import validation_scores
from histotl.learn.starting import pretrained_of
from histotl.learn.task import Task
from histotl.learn.trained import Trained, case_answers
from histotl.learn.training_sets import Level, labelled_part


def train_cohort(
    cohort: Cohort,
    store: BagStore,
    level: Level,
    config: TrainConfig,
    inputs: Mapping[str, str],
    report: Report = silent,
    progress: Progress | None = None,
) -> Trained:
    """A model from the train and val cases of a cohort; nothing is written.

    Args:
        cohort: Cases with splits.
        store: Their features.
        level: Whether rows or bags get answers.
        config: Settings.
        inputs: Name -> digest of what was read, for the model's provenance.
        report: Told of every network trained.
        progress: Keeps every network that is finished, and has those of a start before.

    Raises:
        TableError: A task has no labelled training row.
    """
    start = pretrained_of(store, level, config)
    fitted = fit(
        labelled_part(cohort, "train", level, store, config),
        labelled_part(cohort, "val", level, store, config),
        tasks=cohort.cases.tasks,
        config=config,
        aggregator=choose_aggregator(config.aggregator, TrainConfig.aggregator, start) if level == "slide" else "",
        start=start,
        report=report,
        progress=progress,
    )
    return completed(fitted, cohort, store, level, config, inputs, report)


def completed(
    fitted: Fitted,
    cohort: Cohort,
    store: BagStore,
    level: Level,
    config: TrainConfig,
    inputs: Mapping[str, str],
    report: Report = silent,
) -> Trained:
    """A model of trained networks: with its gate, calibrated, and with thresholds and sets.

    Args:
        fitted: The networks.
        cohort: Cases with the splits that they were trained on.
        store: Their features.
        level: Whether rows or bags get answers.
        config: Settings.
        inputs: Name -> digest of what was read, for the model's provenance.
        report: Told of what could not be calibrated or decided.
    """
    train_set, val_set = (labelled_part(cohort, split, level, store, config) for split in ("train", "val"))
    gate = _gate(cohort, store, config)
    model = finished(_model(cohort, store, level, config, fitted, gate, inputs), train_set)
    outputs = outputs_of(model, val_set.bags)
    truth = {task.name: stated(task, val_set.targets[task.name]) for task in model.tasks}
    calibrated = calibrate(model.tasks, outputs, truth, config.calibration)
    model = without_auxiliary(replace(model, calibrations=calibrated.calibrations))
    rows = cohort.cases.in_split("val")
    answers = case_answers(model, cohort.bags.subset(rows))
    decisions, notes = fit_decisions(
        model.tasks,
        answers,
        {name: target[rows] for name, target in cohort.cases.targets.items()},
        ids=[cohort.cases.ids[row] for row in rows],
        patients=[cohort.cases.patients[row] for row in rows],
        threshold=config.threshold,
        coverage=config.coverage,
        sets=config.sets,
    )
    for name, note in [*calibrated.notes.items(), *notes.items()]:
        report(Step(stage="train", message=f"{name}: {note}"))
    model = replace(model, decisions=decisions)
    scores = validation_scores(model.tasks, outputs, val_set.targets, model.calibrations, model.facts, model.decisions)
    said = {"calibration": dict(calibrated.notes), "decision": notes}
    return Trained(model=model, fitted=fitted, validation=scores, answers=answers, notes=said)


def _gate(cohort: Cohort, store: BagStore, config: TrainConfig) -> Gate | None:
    if not config.ood:
        return None
    cases = cohort.cases
    rows = cases.in_split("train")
    first = next((task for task in cases.tasks if task.is_classification), None)
    labels = None
    if first is not None:
        target = cases.targets[first.name][rows]
        labels = np.nan_to_num(hard(target), nan=-1).astype(np.int64)
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
    inputs: Mapping[str, str],
) -> Model:
    provenance = Provenance.now(specs={"train": asdict(config)}, inputs=inputs)
    priors = {name: list(fact.prior) for name, fact in fitted.facts.items()}
    return Model(
        tasks=fitted.tasks,
        level=level,
        kind=store.kind,
        bag=config.bag,
        id_column=config.bag or store.id_column,
        identity=store.identity,
        architecture=fitted.architecture,
        members=fitted.members,
        facts=fitted.facts,
        calibrations={},
        decisions={},
        covariates=fitted.covariates,
        gate=gate,
        extra={
            "config": asdict(config),
            "label_counts": label_counts(cohort.cases),
            "priors": priors,
            "notes": cohort.notes,
            TRAIN_CASES: _train_cases(cohort, fitted.tasks),
            "views": None if store.views is None else asdict(store.views),
            "card": None if store.card is None else asdict(store.card),
            "provenance": asdict(provenance),
        },
    )


def _train_cases(cohort: Cohort, tasks: Sequence[Task]) -> dict[str, list[str]] | None:
    """Names and patients of the training cases, where a task keeps their rows as evidence."""
    if not any(isinstance(task.head, Recalling) and not task.is_helper for task in tasks):
        return None
    cases, rows = cohort.cases, cohort.cases.in_split("train").tolist()
    return {"ids": [cases.ids[row] for row in rows], "patients": [cases.patients[row] for row in rows]}
