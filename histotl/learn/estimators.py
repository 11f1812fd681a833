"""The scikit-learn face: estimators with fit, predict, predict_proba and score, which can be cloned and searched.

They train by the same :func:`histotl.learn.fit.fit` as ``histotl train``, on arrays in memory or on an open
:class:`histotl.learn.bags.BagStore`, and hold a :class:`histotl.learn.model.Model` as ``model_``, which
:func:`histotl.learn.model.save_model` writes. Part of the training patients chooses checkpoints and calibrates.

X is an array (n, D) whose rows are answered one by one; a list of n arrays (n_i, D), one for each slide; or a store,
each of whose slides or patches is a case, and whose identity later features must share. What networks are told of a
case beside its tiles (``config=TrainConfig(covariate=("age", "site: category"))``) comes as columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from histotl.core.errors import TableError, UsageError
from histotl.learn.columns import answer_columns
from histotl.learn.concordance import concordance
from histotl.learn.config import TrainConfig
from histotl.learn.covariate_specs import parse_covariates
from histotl.learn.covariate_values import refuse_answers
from histotl.learn.decisions import labels_of
from histotl.learn.in_memory import (
    CLASS,
    Cases,
    Columns,
    Floats,
    answers_of,
    bags_of,
    class_task,
    classes_of,
    fit_model,
    told,
)
from histotl.learn.labels import hard, known_rows
from histotl.learn.task import Task, check_names

BLOCK = 1024
"""Rows whose neighbours are looked for at a time."""


class MultiTaskEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Several tasks on one trunk.

    Args:
        tasks: What to predict: tasks, or texts as for ``histotl train --task``.
        aggregator: How the tiles of a slide become one vector; plays no part where cases are single rows.
        hidden: Width of the trunk, 0 for none.
        dropout: Of the trunk.
        seed: Of validation split, first weights, batches and dropout.
        validation: Share of the patients that chooses checkpoints and calibrates.
        config: All other settings; the arguments above have precedence.
    """

    def __init__(
        self,
        tasks: Sequence[Task | str] = (),
        *,
        aggregator: str = "mean",
        hidden: int = 256,
        dropout: float = 0.5,
        seed: int = 0,
        validation: float = 0.2,
        config: TrainConfig | None = None,
    ) -> None:
        self.tasks, self.aggregator, self.hidden, self.dropout = tasks, aggregator, hidden, dropout
        self.seed, self.validation, self.config = seed, validation, config

    def fit(
        self, X: Cases, y: Columns, groups: Sequence[object] | None = None, covariates: Columns | None = None
    ) -> MultiTaskEstimator:
        """Train.

        Args:
            X: n cases.
            y: The column of each task, n values each; missing labels are empty, None or NaN.
            groups: Patient of each case; None when each case is another patient.
            covariates: The column of each covariate of ``config``, n values each; missing ones are empty, None or NaN.

        Raises:
            TableError: A column is missing or too short, or its values cannot be used.
            UsageError: Covariates and settings do not fit together, or a covariate is the column of a task.
        """
        bags, single = bags_of(X)
        tasks = [_resolved(task, y, len(bags)) for task in check_names(self.tasks)]
        targets = {task.name: _targets(task, y) for task in tasks}
        config = replace(self.config or TrainConfig(), hidden=self.hidden, dropout=self.dropout, seed=self.seed)
        facts = parse_covariates(config.covariate)
        refuse_answers(facts, tasks, {})
        bags = told(bags, facts, covariates)
        aggregator = "" if single else self.aggregator
        self.model_ = fit_model(bags, targets, tasks, X, groups, self.validation, config, aggregator)
        return self

    def predict_proba(self, X: Cases, covariates: Columns | None = None) -> dict[str, Floats]:
        """Task -> calibrated probabilities (n, k), or numbers (n, 1)."""
        check_is_fitted(self)
        return answers_of(self.model_, X, covariates)

    def predict(self, X: Cases, covariates: Columns | None = None) -> pd.DataFrame:
        """A column a task, with class names or numbers."""
        check_is_fitted(self)
        found = answers_of(self.model_, X, covariates)
        ids = [str(i) for i in range(len(next(iter(found.values()))))]
        columns = answer_columns(self.model_.tasks, found, {}, decisions=self.model_.decisions, ids=ids)
        return pd.DataFrame({task.name: columns[task.name] for task in self.model_.tasks})

    def score(self, X: Cases, y: Columns, covariates: Columns | None = None) -> float:
        """Mean over the tasks on the labelled cases: of classes and labels accuracy, of numbers R², of risks C."""
        found = self.predict_proba(X, covariates)
        scores = [self._score_of(task, found[task.name], _targets(task, y)) for task in self.model_.tasks]
        return float(np.mean(scores))

    def _score_of(self, task: Task, values: Floats, target: Floats) -> float:
        if task.nature.answers == "labels":
            known = ~np.isnan(target)
            found = labels_of(values, self.model_.decisions.get(task.name))
            return float((found == (target == 1))[known].mean())
        rows = known_rows(target)
        values, target = values[rows], target[rows]
        if task.nature.answers == "risk":
            return float(concordance(values[:, 0], target[:, 0], target[:, 1] > 0))
        if task.nature.answers == "number":
            return float(r2_score(target, values[:, 0]))
        return float((self.model_.decide(task, values) == hard(target)).mean())


def _resolved(task: Task, y: Columns, n: int) -> Task:
    """The task with its classes known.

    Raises:
        TableError: A column is missing or too short.
    """
    for name in task.reads:
        if name not in y:
            raise TableError(f"y has no column {name!r} for task {task.name!r}", hint="add it to y")
        if len(y[name]) != n:
            fact = f"column {name!r} has {len(y[name])} labels for {n} cases"
            raise TableError(fact, hint="give one label a case, None where it is missing")
    return task.resolved(list(y[task.reads[0]]))


def _targets(task: Task, y: Columns) -> Floats:
    return task.targets(*(list(y[name]) for name in task.reads))


class MILClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One class a slide, from the tiles of the slide.

    Args:
        aggregator: How the tiles of a slide become one vector.
        hidden: Width of the trunk, 0 for none.
        dropout: Of the trunk.
        seed: Of validation split, first weights, batches and dropout.
        validation: Share of the patients that chooses checkpoints and calibrates.
        config: All other settings; the arguments above have precedence.
    """

    def __init__(
        self,
        *,
        aggregator: str = "abmil",
        hidden: int = 256,
        dropout: float = 0.5,
        seed: int = 0,
        validation: float = 0.2,
        config: TrainConfig | None = None,
    ) -> None:
        self.aggregator, self.hidden, self.dropout = aggregator, hidden, dropout
        self.seed, self.validation, self.config = seed, validation, config

    def fit(
        self,
        X: Cases,
        y: Sequence[object],
        groups: Sequence[object] | None = None,
        covariates: Columns | None = None,
    ) -> MILClassifier:
        """Train on n slides with a label each.

        Args:
            X: The slides.
            y: Their classes.
            groups: Their patients; None when each is another one's.
            covariates: The column of each covariate of ``config``, n values each; missing ones are empty, None or NaN.

        Raises:
            UsageError: X holds single rows, or covariates and settings do not fit together.
            TableError: One class only, too few patients, or covariates that cannot be read.
        """
        bags, single = bags_of(X)
        if single:
            raise UsageError("X holds single rows, not slides", hint="give a list of arrays, or use LinearProbe")
        config = replace(self.config or TrainConfig(), hidden=self.hidden, dropout=self.dropout, seed=self.seed)
        self.classes_, target = classes_of(y, len(bags))
        task, bags = class_task(len(self.classes_)), told(bags, parse_covariates(config.covariate), covariates)
        targets = {task.name: target}
        self.model_ = fit_model(bags, targets, [task], X, groups, self.validation, config, self.aggregator)
        return self

    def predict_proba(self, X: Cases, covariates: Columns | None = None) -> Floats:
        """Calibrated probabilities (n, k), columns as ``classes_``."""
        check_is_fitted(self)
        return answers_of(self.model_, X, covariates)[CLASS]

    def predict(self, X: Cases, covariates: Columns | None = None) -> npt.NDArray[Any]:
        """Class of each slide (n,)."""
        found = self.predict_proba(X, covariates)
        return np.asarray(self.classes_[self.model_.decide(self.model_.tasks[0], found)])

    def score(
        self,
        X: Cases,
        y: Sequence[object],
        sample_weight: Sequence[float] | None = None,
        covariates: Columns | None = None,
    ) -> float:
        """Accuracy; cases weigh alike where ``sample_weight`` (n,) is None."""
        return float(accuracy_score(y, self.predict(X, covariates), sample_weight=sample_weight))


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A calibrated linear layer on single feature vectors: the usual measure of what a backbone knows.

    Args:
        weight_decay: Decoupled weight decay.
        seed: Of validation split, first weights and batches.
        validation: Share of the patients that chooses checkpoints and calibrates.
        config: All other settings; the arguments above have precedence, and there is no trunk and no dropout.
    """

    def __init__(
        self,
        *,
        weight_decay: float = 0.01,
        seed: int = 0,
        validation: float = 0.2,
        config: TrainConfig | None = None,
    ) -> None:
        self.weight_decay, self.seed, self.validation, self.config = weight_decay, seed, validation, config

    def fit(
        self, X: npt.NDArray[np.floating], y: Sequence[object], groups: Sequence[object] | None = None
    ) -> LinearProbe:
        """Train on rows (n, D) with a label each; ``groups`` are their patients."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        config = replace(
            self.config or TrainConfig(), hidden=0, dropout=0.0, seed=self.seed, weight_decay=self.weight_decay
        )
        self.classes_, target = classes_of(y, len(X))
        task, bags = class_task(len(self.classes_)), bags_of(X)[0]
        self.model_ = fit_model(bags, {task.name: target}, [task], X, groups, self.validation, config, "")
        return self

    def predict_proba(self, X: npt.NDArray[np.floating]) -> Floats:
        """Calibrated probabilities (n, k), columns as ``classes_``."""
        check_is_fitted(self)
        return answers_of(self.model_, validate_data(self, X, dtype=np.float64, reset=False))[CLASS]

    def predict(self, X: npt.NDArray[np.floating]) -> npt.NDArray[Any]:
        """Class of each row (n,)."""
        found = self.predict_proba(X)
        return np.asarray(self.classes_[found.argmax(axis=1)])


class KNNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Votes of the nearest training vectors by cosine, each weighing exp(cosine / temperature).

    The protocol of self-supervised vision (Wu et al. 2018, "Unsupervised feature learning via non-parametric instance
    discrimination"); nothing is trained.

    Args:
        n_neighbors: Votes; all training rows where there are fewer.
        temperature: Above 0; large ones count every vote alike.
    """

    def __init__(self, *, n_neighbors: int = 20, temperature: float = 0.07) -> None:
        self.n_neighbors, self.temperature = n_neighbors, temperature

    def fit(self, X: npt.NDArray[np.floating], y: Sequence[object]) -> KNNClassifier:
        """Keep the rows (n, D), less their mean and at length 1, and their labels."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if self.n_neighbors < 1 or not self.temperature > 0:
            fact = f"n_neighbors is {self.n_neighbors}, temperature is {self.temperature}"
            raise UsageError(fact, hint="give 1 or more neighbours and a temperature above 0")
        self.classes_, target = classes_of(y, len(X))
        self.mean_ = X.mean(axis=0)
        self.rows_, self.labels_ = _unit(X - self.mean_), target.astype(np.int64)
        return self

    def predict_proba(self, X: npt.NDArray[np.floating]) -> Floats:
        """Shares of the votes (n, k), columns as ``classes_``."""
        check_is_fitted(self)
        rows: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        votes = np.eye(len(self.classes_))[self.labels_]
        parts = [self._votes(rows[i : i + BLOCK], votes) for i in range(0, len(rows), BLOCK)]
        return np.concatenate(parts)

    def _votes(self, X: Floats, votes: Floats) -> Floats:
        cosine = _unit(X - self.mean_) @ self.rows_.T
        k = min(self.n_neighbors, len(self.rows_))
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(cosine, near, axis=1)
        weights = np.exp((found - found.max(axis=1, keepdims=True)) / self.temperature)
        total: Floats = np.einsum("nk,nkc->nc", weights, votes[near])
        return np.asarray(total / total.sum(axis=1, keepdims=True))

    def predict(self, X: npt.NDArray[np.floating]) -> npt.NDArray[Any]:
        """Class of each row (n,)."""
        found = self.predict_proba(X)
        return np.asarray(self.classes_[found.argmax(axis=1)])


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0))
