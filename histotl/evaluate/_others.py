"""Metrics of tasks without classes that exclude one another: several labels, and times to an event."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from histotl.core.intervals import Resamples, estimate
from histotl.evaluate import metrics, ranking
from histotl.evaluate.metrics import Floats
from histotl.evaluate.results import Answers, LabelResult
from histotl.learn.concordance import censoring_importance, concordance

Metric = Callable[[Floats, ranking.Mask, Floats], Floats]


def label_metrics(answers: Answers, draws: Resamples) -> dict[str, Floats]:
    """Name -> value on every draw (1 + b,): means over labels, each on the rows that say something about it."""
    truth, p = answers.truth, _probability(answers)
    known = ~np.isnan(truth)
    hits = known & (truth == 1) & (answers.predicted == 1)
    said = known & ((truth == 1) | (answers.predicted == 1))
    # 2 tp / (2 tp + fp + fn), where tp + fp + fn are the rows with the label or its answer.
    both, any_of = draws.sums(hits.astype(np.float64)), draws.sums(said.astype(np.float64))
    right = np.clip(np.where(truth == 1, p, 1 - p), np.finfo(np.float64).eps, 1.0)
    total = draws.sums(known.sum(axis=1, keepdims=True).astype(np.float64))[:, 0]

    def entries(values: Floats) -> Floats:
        return metrics.divide(draws.sums(np.where(known, values, 0.0).sum(axis=1, keepdims=True))[:, 0], total)

    return {
        "auroc_labels": metrics.nan_mean(np.stack(_each(answers, draws, ranking.auroc), axis=-1)),
        "map_labels": metrics.nan_mean(np.stack(_each(answers, draws, ranking.average_precision), axis=-1)),
        "f1_labels": metrics.nan_mean(metrics.divide(2 * both, both + any_of)),
        "brier_labels": entries((1 - right) ** 2),
        "nll_labels": entries(-np.log(right)),
    }


def label_results(answers: Answers, draws: Resamples) -> tuple[LabelResult, ...]:
    """Each label by itself."""
    areas, precisions = _each(answers, draws, ranking.auroc), _each(answers, draws, ranking.average_precision)
    return tuple(
        LabelResult(
            name=name,
            rows=int((~np.isnan(answers.truth[:, c])).sum()),
            positive=int((answers.truth[:, c] == 1).sum()),
            auroc=estimate(areas[c]),
            average_precision=estimate(precisions[c]),
        )
        for c, name in enumerate(answers.classes)
    )


def risk_metrics(answers: Answers, draws: Resamples) -> dict[str, Floats]:
    """Harrell's and Uno's C on every draw (1 + b,); the weights of the latter are those of the real set."""
    risk, time = answers.predicted, answers.truth
    if answers.event is None:
        raise ValueError("no events")
    event = answers.event
    importance = censoring_importance(time, event)
    return {
        "c_index": draws.rows(lambda w: concordance(risk, time, event, w)),
        "c_index_uno": draws.rows(lambda w: concordance(risk, time, event, w, importance=importance)),
    }


def _each(answers: Answers, draws: Resamples, metric: Metric) -> list[Floats]:
    """A ranking metric of each label, on the rows that say something about it."""
    return [_of_label(answers, draws, metric, c) for c in range(len(answers.classes))]


def _of_label(answers: Answers, draws: Resamples, metric: Metric, label: int) -> Floats:
    rows = np.flatnonzero(~np.isnan(answers.truth[:, label]))
    if not len(rows):
        return np.full(draws.weights.shape[1], np.nan)
    score, positive = _probability(answers)[rows, label], answers.truth[rows, label] == 1
    return draws.rows(lambda w: metric(score, positive, w[rows]))


def _probability(answers: Answers) -> Floats:
    if answers.probability is None:
        raise ValueError("no probabilities")
    return answers.probability
