"""Which metrics answer for which kind of task, each with its interval, beside the majority baseline."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.evaluate import calibration, metrics, ranking
from histotl.evaluate._others import label_metrics, label_results, risk_metrics
from histotl.evaluate.metrics import Floats, Ints
from histotl.evaluate.results import FEW, FEW_UNITS, Answers, ClassRecall, ReliabilityBin, TaskResult


def measure(answers: Answers, baseline: Answers, *, resamples: int, seed: int, unit_name: str) -> TaskResult:
    """All metrics of one task.

    Args:
        answers: At least one row.
        baseline: The same rows answered by the majority of the training rows.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
        unit_name: What is resampled: ``patient`` or ``row``, for the notes.
    """
    draws = Resamples.draw(answers.unit, resamples if answers.unit.max() > 0 else 0, seed)
    alone = Resamples.draw(answers.unit, 0, seed)
    found = {name: estimate(values) for name, values in _values(answers, draws).items()}
    result = TaskResult(
        answers=answers,
        units=draws.n_units,
        metrics=found,
        # The majority has no sets.
        majority=dict.fromkeys(found, np.nan)
        | {name: float(values[0]) for name, values in _values(baseline, alone).items()},
        notes=_notes(answers, draws.n_units, unit_name),
    )
    if answers.answers == "labels":
        return dataclasses.replace(result, labels=label_results(answers, draws))
    if answers.probability is None:
        return result
    before = None if answers.uncalibrated is None else _calibration(answers, answers.uncalibrated, draws)
    confusion = draws.confusion(*_indices(answers), len(answers.classes))
    return dataclasses.replace(
        result,
        recalls=_class_recalls(answers, confusion),
        confusion=confusion[0].astype(np.int64),
        reliability=_calibration(answers, answers.probability, draws)[1],
        reliability_before=before[1] if before else (),
        ece_before=before[0] if before else None,
    )


def _values(answers: Answers, draws: Resamples) -> dict[str, Floats]:
    """Name -> value on every draw (1 + b,), in the order in which they are shown."""
    if answers.answers == "labels":
        return label_metrics(answers, draws)
    if answers.event is not None:
        return risk_metrics(answers, draws)
    if answers.probability is None:
        return _value_metrics(answers, draws) | _set_metrics(answers, draws)
    return _class_metrics(answers, answers.probability, draws) | _set_metrics(answers, draws)


def _set_metrics(answers: Answers, draws: Resamples) -> dict[str, Floats]:
    if answers.covered is None or answers.set_size is None:
        return {}
    size = "interval_width" if answers.probability is None else "set_size"
    found = {"set_coverage": draws.mean(answers.covered)}
    # Too few validation patients leave intervals without ends, whose width is no number.
    return found | ({size: draws.mean(answers.set_size)} if np.isfinite(answers.set_size).all() else {})


def _value_metrics(answers: Answers, draws: Resamples) -> dict[str, Floats]:
    truth, predicted = answers.truth, answers.predicted
    values: dict[str, Floats] = {
        "mae": draws.mean(metrics.absolute_errors(truth, predicted)),
        "r2": draws.rows(lambda w: metrics.r2(truth, predicted, w)),
        "spearman": draws.rows(lambda w: ranking.spearman(truth, predicted, w)),
    }
    if answers.interval is not None:
        low, high = answers.interval.T
        values["coverage_90"] = draws.mean(((low <= truth) & (truth <= high)).astype(np.float64))
        values["width_90"] = draws.mean(high - low)
    return values


def _class_metrics(answers: Answers, probability: Floats, draws: Resamples) -> dict[str, Floats]:
    truth, predicted = _indices(answers)
    confusion = draws.confusion(truth, predicted, len(answers.classes))
    values: dict[str, Floats] = {}
    if answers.expected is not None:
        values["quadratic_kappa"] = metrics.quadratic_kappa(confusion)
        values["grade_mae"] = metrics.grade_error(confusion)
        values["expected_grade_mae"] = draws.mean(metrics.absolute_errors(answers.truth, answers.expected))
    values["balanced_accuracy"] = metrics.balanced_accuracy(confusion)
    if len(answers.classes) == 2:
        score = probability[:, 1]
        values["auroc"] = draws.rows(lambda w: ranking.auroc(score, truth == 1, w))
        values["average_precision"] = draws.rows(lambda w: ranking.average_precision(score, truth == 1, w))
    else:
        values["auroc_macro_ovr"] = draws.rows(lambda w: ranking.auroc_macro(probability, truth, w))
    values["f1_macro"] = metrics.f1_macro(confusion)
    values["accuracy"] = metrics.accuracy(confusion)
    values["ece"] = _ece(answers, probability, draws)
    values["brier"] = draws.mean(metrics.brier_rows(truth, probability))
    values["nll"] = draws.mean(metrics.nll_rows(truth, probability))
    if answers.shares is not None:
        values["soft_brier"] = draws.mean(metrics.soft_brier_rows(answers.shares, probability))
        values["soft_nll"] = draws.mean(metrics.soft_nll_rows(answers.shares, probability))
    return values


def _indices(answers: Answers) -> tuple[Ints, Ints]:
    return answers.truth.astype(np.int64), answers.predicted.astype(np.int64)


def _confidence(answers: Answers, probability: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Largest probability of each row, and whether its class is the true one."""
    return probability.max(axis=1), probability.argmax(axis=1) == answers.truth


def _ece(answers: Answers, probability: Floats, draws: Resamples) -> Floats:
    confidence, correct = _confidence(answers, probability)
    gaps = calibration.bin_gaps(confidence, correct, calibration.equal_mass_bins(confidence))
    sums = draws.sums(np.concatenate([gaps, np.ones((len(gaps), 1))], axis=1))
    return calibration.ece_of_gaps(sums[:, :-1], sums[:, -1])


def _calibration(
    answers: Answers, probability: Floats, draws: Resamples
) -> tuple[Estimate, tuple[ReliabilityBin, ...]]:
    """ECE and the reliability curve of some probabilities."""
    confidence, correct = _confidence(answers, probability)
    bins = calibration.curve_bins(confidence)
    one_hot = np.eye(int(bins.max()) + 1)[bins]
    hits = draws.sums(one_hot * correct[:, None])
    held = draws.sums(one_hot)
    curve = tuple(
        ReliabilityBin(
            rows=int(held[0, b]),
            confidence=float(confidence[bins == b].mean()),
            correct=estimate(metrics.divide(hits[:, b], held[:, b])),
        )
        for b in range(held.shape[1])
    )
    return estimate(_ece(answers, probability, draws)), curve


def _class_recalls(answers: Answers, confusion: Floats) -> tuple[ClassRecall, ...]:
    values = metrics.recalls(confusion)
    return tuple(
        ClassRecall(
            name=name,
            rows=int((answers.truth == c).sum()),
            units=len(np.unique(answers.unit[answers.truth == c])),
            recall=estimate(values[:, c]),
        )
        for c, name in enumerate(answers.classes)
    )


def _notes(answers: Answers, units: int, unit_name: str) -> tuple[str, ...]:
    notes = []
    if units == 1:
        notes.append(f"one single {unit_name}: no interval can be given")
    elif units < FEW:
        notes.append(f"only {units} {unit_name}s: the intervals are rough and likely too narrow")
    if answers.event is not None and answers.event.sum() < FEW:
        notes.append(f"only {int(answers.event.sum())} events: read the intervals with care")
    for c, name in enumerate(answers.classes):
        held = answers.unit[answers.truth[:, c] == 1 if answers.answers == "labels" else answers.truth == c]
        owners = len(np.unique(held))
        if not len(held):
            notes.append(f"no row of class {name!r}: it is left out of the means over classes")
        elif len(held) < FEW or owners < FEW_UNITS:
            count = f"{len(held)} rows" + (f" of {owners} {unit_name}s" if owners < len(held) else "")
            notes.append(f"class {name!r} has only {count}: read the intervals with care")
    return tuple(notes)
