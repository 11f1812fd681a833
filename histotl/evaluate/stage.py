"""The stage `evaluate`: predictions and a label table in; metrics.json, metrics.md and report.html out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histotl.core.atomic import write_text
from histotl.core.errors import TableError
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance, file_digest
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.evidence import Evidence
from histotl.evaluate.gate import FAILURE, Selective, judge_failure, judge_gate
from histotl.evaluate.measure import measure
from histotl.evaluate.quality import quality_of
from histotl.evaluate.report import render_html, render_markdown
from histotl.evaluate.results import TaskResult
from histotl.evaluate.rows import Joined, answers_of, join, majority_of
from histotl.evaluate.slides import slide_cards
from histotl.evaluate.source import Features, find_source_features, source_of
from histotl.learn.folder import check_folder
from histotl.learn.predictions import TABLE_NAME, Predictions, read_predictions
from histotl.learn.reading import read_table


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationResult:
    """What :func:`evaluate_predictions` found and wrote.

    Args:
        evidence: All findings.
        metrics_json: Every number.
        metrics_md: The tables.
        report_html: The page.
    """

    evidence: Evidence
    metrics_json: Path
    metrics_md: Path
    report_html: Path

    @property
    def metrics(self) -> Mapping[str, object]:
        """What stands in ``metrics.json``."""
        return self.evidence.to_dict()


def evaluate_predictions(
    predictions: Path | str,
    table: Path | str | pd.DataFrame,
    out: Path | str,
    *,
    config: EvaluateConfig | None = None,
    report: Report = silent,
) -> EvaluationResult:
    """Measure predictions against labels, with intervals, and write the evidence.

    Args:
        predictions: Folder that ``predict`` wrote.
        table: CSV (or DataFrame) with the identifier, the split, the patient and the columns of the tasks.
        out: Folder for ``metrics.json``, ``metrics.md`` and ``report.html``.
        config: Options.
        report: Told about progress.

    Raises:
        TableError: The table or the predictions do not fit; the message says where.
    """
    config = config or EvaluateConfig()
    out = Path(out)
    check_folder(out)
    answers = read_predictions(predictions)
    joined = join(answers, read_table(table), config)
    features = find_source_features(answers, config)
    results, unlabelled, baseline = _measure_all(answers, joined, config, report)
    evidence = Evidence(
        config=config,
        table=_name(table),
        n=len(joined.names),
        units=len(set(joined.unit_names)),
        by_patient=joined.by_patient,
        tasks=results,
        unlabelled=unlabelled,
        gate=judge_gate(joined.everything, split=config.split, resamples=config.bootstrap, seed=config.seed),
        selective=_failures(results, joined, config),
        baseline=baseline,
        missing=joined.missing,
        outside=joined.outside,
        source=source_of(answers, features),
        provenance=_provenance(answers, table, config),
        quality=quality_of(features, joined.names),
    )
    return _write(evidence, answers, features, out, report)


def _measure_all(
    predictions: Predictions, joined: Joined, config: EvaluateConfig, report: Report
) -> tuple[tuple[TaskResult, ...], tuple[str, ...], str]:
    """Results of the tasks with labels, names of those without, and where the majority is from."""
    results, unlabelled, source = [], [], "train"
    for done, task in enumerate(predictions.tasks):
        report(Step(stage="evaluate", done=done, total=len(predictions.tasks), item=task.name))
        answers = answers_of(task, joined)
        if answers is None:
            unlabelled.append(task.name)
            continue
        baseline, origin = majority_of(task, answers, joined, config)
        source = origin if origin != "train" else source
        unit_name = "patient" if joined.by_patient else "row"
        results.append(measure(answers, baseline, resamples=config.bootstrap, seed=config.seed, unit_name=unit_name))
    if not results:
        cure = "evaluate a split whose rows have labels"
        raise TableError(f"no row of split {config.split!r} has a label for {', '.join(unlabelled)}", hint=cure)
    return tuple(results), tuple(unlabelled), source


def _failures(results: tuple[TaskResult, ...], joined: Joined, config: EvaluateConfig) -> tuple[Selective, ...]:
    """Evidence on the failure score for every classification task."""
    if FAILURE not in joined.predicted.columns:
        return ()
    score = dict(zip(joined.names, joined.predicted[FAILURE].to_numpy(dtype=np.float64, na_value=np.nan), strict=True))
    entries = (
        judge_failure(
            result.answers,
            np.array([score[name] for name in result.answers.names]),
            resamples=config.bootstrap,
            seed=config.seed,
        )
        for result in results
    )
    return tuple(entry for entry in entries if entry is not None)


def _provenance(predictions: Predictions, table: Path | str | pd.DataFrame, config: EvaluateConfig) -> Provenance:
    inputs = {TABLE_NAME: file_digest(predictions.folder / TABLE_NAME, whole=True)}
    if not isinstance(table, pd.DataFrame):
        inputs[_name(table)] = file_digest(Path(table), whole=True)
    specs = {"evaluate": asdict(config), "tasks": [str(task) for task in predictions.tasks]}
    return Provenance.now(specs=specs, inputs=inputs)


def _name(table: Path | str | pd.DataFrame) -> str:
    return "a table in memory" if isinstance(table, pd.DataFrame) else Path(table).name


def _write(
    evidence: Evidence, predictions: Predictions, features: Features, out: Path, report: Report
) -> EvaluationResult:
    report(Step(stage="evaluate", item="report"))
    cards, sentence = slide_cards(evidence, predictions, features)
    result = EvaluationResult(
        evidence=evidence,
        metrics_json=out / "metrics.json",
        metrics_md=out / "metrics.md",
        report_html=out / "report.html",
    )
    write_text(result.metrics_json, json.dumps(evidence.to_dict(), indent=1, allow_nan=False, default=str) + "\n")
    write_text(result.metrics_md, render_markdown(evidence))
    write_text(result.report_html, render_html(evidence, cards, sentence))
    return result
