"""Training on what is in memory: arrays, lists of arrays, or an open store; what the estimators stand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.errors import TableError, UsageError
from histotl.learn.bags import Bags, BagStore
from histotl.learn.calibrate import calibrate, stated
from histotl.learn.config import TrainConfig
from histotl.learn.covariate_specs import Covariate
from histotl.learn.covariate_values import read_values
from histotl.learn.finishing import finished, without_auxiliary
from histotl.learn.fit import Fitted, Labelled, fit
from histotl.learn.model import Model
from histotl.learn.rows import ArrayRows
from histotl.learn.split import split_patients
from histotl.learn.task import Task
from histotl.learn.trained import case_answers

Floats = npt.NDArray[np.float64]
Cases = npt.NDArray[np.floating] | Sequence[npt.NDArray[np.floating]] | BagStore
"""Rows (n, D), n arrays (n_i, D), or a store."""

Columns = pd.DataFrame | Mapping[str, Sequence[object]]
"""Values by name, one a case in each column."""

CLASS = "class"
"""Name of the only task of a classifier."""


def bags_of(X: Cases) -> tuple[Bags, bool]:
    """Bags, and whether each of them is one row by its nature.

    Raises:
        UsageError: X is nothing of that, or arrays differ in width.
    """
    if isinstance(X, BagStore):
        return X.bags([[i] for i in range(len(X.ids))]), X.kind == "patches"
    if isinstance(X, np.ndarray) and X.ndim == 2:
        return Bags.singles(ArrayRows(X), np.arange(len(X), dtype=np.int64)), True
    arrays = [np.asarray(each) for each in X]
    if not arrays or any(each.ndim != 2 or each.shape[1] != arrays[0].shape[1] for each in arrays):
        shapes = ", ".join(str(each.shape) for each in arrays[:4])
        raise UsageError(f"X holds arrays of the shapes {shapes or 'none'}", hint="give (n_i, D) with one D")
    ends = np.cumsum([len(each) for each in arrays])[:-1]
    return Bags.of(ArrayRows(np.concatenate(arrays)), np.split(np.arange(sum(map(len, arrays))), ends)), False


def told(bags: Bags, covariates: Sequence[Covariate], known: Columns | None) -> Bags:
    """The bags with what networks are told of each beside its rows.

    Args:
        bags: n of them.
        covariates: What networks are told.
        known: The column of each covariate, n values each, empty, None or NaN where missing; None for nothing.

    Raises:
        UsageError: Networks are told something of which nothing is given, or the reverse.
        TableError: A column is missing, of another length, or holds what its covariate does not take.
    """
    names = ", ".join(covariate.column for covariate in covariates)
    if known is None:
        if covariates:
            raise UsageError(f"the networks are told {names}", hint="give the columns as covariates=")
        return bags
    if not covariates:
        cure = "name them in the settings: config=TrainConfig(covariate=('age',))"
        raise UsageError("covariates are given, and the networks are told none", hint=cure)
    columns = {str(name): list(values) for name, values in known.items()}
    for name, values in columns.items():
        if len(values) != len(bags):
            fact = f"column {name!r} of the covariates has {len(values)} values for {len(bags)} cases"
            raise TableError(fact, hint="give one value a case, None where it is missing")
    return replace(bags, covariates=read_values(pd.DataFrame(columns), covariates, [[i] for i in range(len(bags))]))


def classes_of(y: Sequence[object], n: int) -> tuple[npt.NDArray[Any], Floats]:
    """The classes, sorted, and the place of each label among them.

    Raises:
        TableError: One class only, or not one label a case.
    """
    labels = np.asarray(y)
    if len(labels) != n:
        raise TableError(f"{len(labels)} labels for {n} cases", hint="give one label a case")
    classes, target = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise TableError(f"y holds {len(classes)} class", hint="there is nothing to tell apart: give two classes")
    return classes, target.astype(np.float64)


def class_task(n_classes: int) -> Task:
    """The task of a classifier; what its classes are called is the estimator's business."""
    names = tuple(f"class_{i}" for i in range(n_classes))
    return Task(name=CLASS, kind="binary" if n_classes == 2 else "multiclass", classes=names)


def fit_model(
    bags: Bags,
    targets: Mapping[str, Floats],
    tasks: Sequence[Task],
    X: Cases,
    groups: Sequence[object] | None,
    validation: float,
    config: TrainConfig,
    aggregator: str,
) -> Model:
    """Train and calibrate in memory.

    Raises:
        UsageError: The validation share is none, groups do not fit, or the bags come without the covariates.
        TableError: Nothing is left to train or to validate with.
    """
    if config.covariate and bags.covariates is None:
        fact = f"this estimator takes no covariates, and the settings name {', '.join(config.covariate)}"
        raise UsageError(fact, hint="put numbers into X, or use MultiTaskEstimator or MILClassifier")
    if not 0 < validation < 1:
        raise UsageError(f"validation is {validation}", hint="give a share between 0 and 1, such as 0.2")
    owners = [str(i) for i in range(len(bags))] if groups is None else [str(group) for group in groups]
    if len(owners) != len(bags):
        raise UsageError(f"{len(owners)} groups for {len(bags)} cases", hint="give the patient of each case")
    parts = np.array(split_patients(owners, tasks, targets, shares=(1 - validation, validation, 0), seed=config.seed))
    rows = [np.flatnonzero(parts == part).astype(np.int64) for part in ("train", "val")]
    if not len(rows[0]) or not len(rows[1]):
        fact = f"{len(set(owners))} patients are too few to train and to validate"
        raise TableError(fact, hint="give more samples of more patients")
    train, val = (
        Labelled(bags=bags.subset(some), targets={name: target[some] for name, target in targets.items()})
        for some in rows
    )
    fitted = fit(train, val, tasks=tasks, config=config, aggregator=aggregator)
    model = finished(bare_model(fitted, X if isinstance(X, BagStore) else None), train)
    outputs = model.outputs(val.bags.gather(np.arange(len(val.bags), dtype=np.int64)))[0]
    truth = {task.name: stated(task, val.targets[task.name]) for task in model.tasks}
    calibrated = calibrate(model.tasks, outputs, truth, config.calibration)
    return without_auxiliary(replace(model, calibrations=calibrated.calibrations))


def bare_model(fitted: Fitted, store: BagStore | None = None) -> Model:
    """The networks as a model that is neither calibrated nor has a gate.

    Args:
        fitted: The networks.
        store: What they were trained on; None for an array of numbers.
    """
    return Model(
        tasks=fitted.tasks,
        level="slide" if fitted.architecture.aggregator else "tile",
        kind="patches" if store is None else store.kind,
        bag="",
        id_column="path" if store is None else store.id_column,
        identity=None if store is None else store.identity,
        architecture=fitted.architecture,
        members=fitted.members,
        facts=fitted.facts,
        calibrations={},
        decisions={},
        covariates=fitted.covariates,
        gate=None,
        extra={},
    )


def answers_of(model: Model, X: Cases, known: Columns | None = None) -> dict[str, Floats]:
    """Task -> answers for cases.

    Args:
        model: Trained.
        X: n cases.
        known: What it is told of them beside X; see :func:`told`.

    Raises:
        IdentityError: Features of another identity than those of fit, or of another width.
        UsageError: Covariates are missing, or the model is told none.
        TableError: They cannot be read.
    """
    bags = told(bags_of(X)[0], model.covariates.covariates, known)
    model.check(X.identity if isinstance(X, BagStore) else model.identity, bags.source.dim)
    return case_answers(model, bags)
