"""Evidence on the out-of-distribution (OOD) gate and on the failure score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.evaluate import ranking
from histotl.evaluate.metrics import Floats
from histotl.evaluate.results import FEW, Answers

FLAG, SCORE, P_VALUE, FAILURE = "ood_flag", "ood_score", "ood_p", "failure_score"

GATE_LABELS: Mapping[str, str] = {
    "auroc": "AUROC",
    "aupr_out": "AUPR (OOD)",
    "id_flagged_at_95_ood_recall": "Known flagged, 95 % of OOD caught",
    "ood_missed_at_95_id_kept": "OOD missed, 95 % of known kept",
}
"""Name of a figure in metrics.json -> heading of its column."""


@dataclass(frozen=True, kw_only=True)
class FlaggedShare:
    """How many rows of one split and site the gate flagged."""

    split: str
    site: str
    rows: int
    flagged: int
    share: Estimate


@dataclass(frozen=True, kw_only=True)
class FlaggedRow:
    """A row that the gate flagged."""

    name: str
    split: str
    site: str
    score: float
    p: float
    marked: bool


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well one score tells marked OOD rows from the evaluated split.

    Args:
        score: Column of the predictions: ``ood_score`` or a detector's raw score.
        metrics: Names of :data:`GATE_LABELS` -> estimate.
    """

    score: str
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """Everything on the gate.

    Args:
        shares: One a split and site.
        flagged: All flagged rows, highest score first.
        n_known: Rows of the evaluated split that are not marked OOD.
        n_ood: Marked OOD rows with a prediction.
        separation: One a score; empty when no row is marked OOD.
        known_scores: ``ood_score`` of the known rows.
        ood_scores: ``ood_score`` of the marked OOD rows.
        unscored: Rows whose score is not a finite number; they are in no figure above.
        notes: What a reader must know.
    """

    shares: tuple[FlaggedShare, ...]
    flagged: tuple[FlaggedRow, ...]
    n_known: int
    n_ood: int
    separation: tuple[Separation, ...]
    known_scores: Floats
    ood_scores: Floats
    unscored: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Selective:
    """How well the failure score finds the errors of one classification task.

    Args:
        task: Its name.
        rows: Rows with a label and a failure score.
        errors: Wrong ones among them.
        augrc: Area under the generalised risk-coverage curve.
        auroc: AUROC of the failure score for "wrong".
        coverage: Of the selective risk curve (g,).
        risk: Share wrong among the accepted (g,).
    """

    task: str
    rows: int
    errors: int
    augrc: Estimate
    auroc: Estimate
    coverage: Floats
    risk: Floats


def judge_gate(rows: pd.DataFrame, *, split: str, resamples: int, seed: int) -> Gate | None:
    """Evidence on the gate, from every predicted row.

    Args:
        rows: Predictions with the columns ``name``, ``split``, ``site``, ``unit_name`` (patient, else row) and
            ``marked_ood`` added.
        split: The evaluated split, whose unmarked rows are the known ones.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        None when the predictions have no gate.
    """
    if FLAG not in rows.columns or SCORE not in rows.columns:
        return None
    finite = np.isfinite(rows[SCORE].to_numpy(dtype=np.float64, na_value=np.nan))
    unscored, rows = int((~finite).sum()), rows[finite]
    marked = rows["marked_ood"].to_numpy(dtype=bool)
    known = (rows["split"] == split).to_numpy() & ~marked
    compared, notes = rows[known | marked], []
    if 0 < marked.sum() < FEW:
        notes.append(f"only {marked.sum()} marked OOD rows (fewer than {FEW}): read the intervals with care")
    return Gate(
        shares=_shares(rows, resamples, seed),
        flagged=_flagged(rows),
        n_known=int(known.sum()),
        n_ood=int(marked.sum()),
        separation=_separations(compared, resamples, seed) if marked.any() and known.any() else (),
        known_scores=rows.loc[known, SCORE].to_numpy(dtype=np.float64),
        ood_scores=rows.loc[marked, SCORE].to_numpy(dtype=np.float64),
        unscored=unscored,
        notes=tuple(notes),
    )


def judge_failure(answers: Answers, failure: Floats, *, resamples: int, seed: int) -> Selective | None:
    """Evidence on the failure score for one classification task.

    Args:
        answers: Of the task.
        failure: Failure score of the same rows (n,); NaN where there is none.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        None without classes, or when no row has a score.
    """
    scored = np.isfinite(failure)
    if answers.answers != "classes" or not scored.any():
        return None
    wrong = (answers.predicted != answers.truth)[scored]
    score = failure[scored]
    unit = np.unique(answers.unit[scored], return_inverse=True)[1].astype(np.int64)
    draws = Resamples.draw(unit, resamples, seed)
    coverage, risk = ranking.risk_coverage(score, wrong)
    return Selective(
        task=answers.name,
        rows=len(wrong),
        errors=int(wrong.sum()),
        augrc=estimate(draws.rows(lambda w: ranking.augrc(score, wrong, w))),
        auroc=estimate(draws.rows(lambda w: ranking.auroc(score, wrong, w))),
        coverage=coverage,
        risk=risk,
    )


def _draws(rows: pd.DataFrame, resamples: int, seed: int) -> Resamples:
    unit = pd.factorize(rows["unit_name"])[0].astype(np.int64)
    return Resamples.draw(unit, resamples if unit.max() > 0 else 0, seed)


def _shares(rows: pd.DataFrame, resamples: int, seed: int) -> tuple[FlaggedShare, ...]:
    shares = []
    for (split, site), part in rows.groupby(["split", "site"], sort=True):
        flag = part[FLAG].to_numpy(dtype=bool)
        draws = _draws(part, resamples, seed)
        share = estimate(draws.mean(flag.astype(np.float64)))
        shares.append(
            FlaggedShare(split=str(split), site=str(site), rows=len(part), flagged=int(flag.sum()), share=share)
        )
    return tuple(shares)


def _flagged(rows: pd.DataFrame) -> tuple[FlaggedRow, ...]:
    chosen = rows[rows[FLAG].to_numpy(dtype=bool)].sort_values([SCORE, "name"], ascending=[False, True])
    p_values = chosen[P_VALUE] if P_VALUE in chosen.columns else pd.Series(np.nan, index=chosen.index)
    return tuple(
        FlaggedRow(name=name, split=split, site=site, score=float(score), p=float(p), marked=bool(marked))
        for name, split, site, score, p, marked in zip(
            chosen["name"], chosen["split"], chosen["site"], chosen[SCORE], p_values, chosen["marked_ood"], strict=True
        )
    )


def _separations(rows: pd.DataFrame, resamples: int, seed: int) -> tuple[Separation, ...]:
    is_ood = rows["marked_ood"].to_numpy(dtype=bool)
    draws = _draws(rows, resamples, seed)
    raw = [c for c in rows.columns if c.startswith("ood_") and c not in (FLAG, SCORE, P_VALUE)]
    found = []
    for column in (SCORE, *raw):
        score = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(score).all():
            found.append(Separation(score=column, metrics=_separation(score, is_ood, draws)))
    return tuple(found)


def _separation(score: Floats, is_ood: ranking.Mask, draws: Resamples) -> dict[str, Estimate]:
    return {
        "auroc": estimate(draws.rows(lambda w: ranking.auroc(score, is_ood, w))),
        "aupr_out": estimate(draws.rows(lambda w: ranking.average_precision(score, is_ood, w))),
        "id_flagged_at_95_ood_recall": estimate(
            draws.rows(lambda w: ranking.id_flagged_at_95_ood_recall(score, is_ood, w))
        ),
        "ood_missed_at_95_id_kept": estimate(draws.rows(lambda w: ranking.ood_missed_at_95_id_kept(score, is_ood, w))),
    }
