"""``histotl demo``: the whole way, on slides that histotl paints itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from histotl.cli._console import EXIT_OK, EXIT_SOME_FAILED, ProgressBar, out, print_table
from histotl.core.progress import Report
from histotl.embed.config import EmbedConfig, TileConfig

if TYPE_CHECKING:
    from histotl.evaluate.stage import EvaluationResult
    from histotl.learn.task import Task

TITLE = "Painted slides: a demonstration"
REMARK = "Every slide of this page was painted by a program; nothing here was measured on a patient's tissue."
STAIN = "macenko"
BACKBONE, BASELINE = "scattering", "color_stats"
"""The baseline sees the slides as they are: its colours would lose by normalisation what it lives on."""


def demo(folder: Path = Path("demo_out"), /, *, patients: int = 60, seed: int = 0, quiet: bool = False) -> int:
    """Paint a cohort of H&E-like slides and take it all the way: tiles, stain, features, two tasks, OOD gate, page.

    The slides are painted, so the figures say that the machinery works, and nothing about patients.

    Args:
        folder: Where everything is written.
        patients: Patients to paint, at least 24 for figures that mean something.
        seed: Of the painting.
        quiet: No progress.
    """
    began = time.monotonic()
    with ProgressBar(quiet=quiet) as report:
        table = _paint(folder, patients, seed, report)
        ok = _embed(table, folder, report)
        results = {name: _answers(table, folder, name, report) for name in (BACKBONE, BASELINE)}
    _show(results)
    page = results[BACKBONE].report_html.resolve()
    out().print(f"\ndone in {time.monotonic() - began:.0f} s; the page with pictures: {page}", markup=False)
    return EXIT_OK if ok else EXIT_SOME_FAILED


def _say(text: str) -> None:
    out().print(text, markup=False)


def _paint(folder: Path, patients: int, seed: int, report: Report) -> Path:
    from histotl.paint.cohort import paint_cohort
    from histotl.paint.config import PaintConfig

    _say(f"1/4 painting slides of {patients} patients at two sites; they are painted, no patient's tissue is here")
    return paint_cohort(folder / "slides", PaintConfig(patients=patients, seed=seed, workers=2), report=report)


def _embed(table: Path, folder: Path, report: Report) -> bool:
    from histotl.embed.engine import embed_slides

    _say(f"2/4 tissue, tiles, stain ({STAIN}), features ({BACKBONE}); then mean colour alone as the baseline")
    ok = True
    for backbone, stain in ((BACKBONE, STAIN), (BASELINE, "none")):
        config = EmbedConfig(backbone=(backbone,), stain=stain)
        summary = embed_slides(str(table), folder / "features", tiling=TileConfig(), config=config, report=report)
        for failure in summary.failed:
            _say(f"    {failure.slide_id}: {failure.message} ({failure.hint})")
        ok = ok and summary.ok
    return ok


def _tasks() -> tuple[Task, ...]:
    from histotl.learn.task import Task

    return (
        Task(name="type", kind="multiclass", column="type", classes=("normal", "serrated", "adenoma")),
        Task(name="dysplasia", kind="ordinal", column="dysplasia", classes=("none", "low", "high")),
    )


def _answers(table: Path, folder: Path, backbone: str, report: Report) -> EvaluationResult:
    from histotl.evaluate.config import EvaluateConfig
    from histotl.evaluate.stage import evaluate_predictions
    from histotl.learn.config import PredictConfig, TrainConfig
    from histotl.learn.predict import predict
    from histotl.learn.train import train

    step = "3/4 heads on" if backbone == BACKBONE else "4/4 the same heads on"
    _say(f"{step} {backbone}: type and dysplasia (some labels missing), calibration, OOD gate, evaluation")
    place, features = folder / backbone, folder / "features"
    config = TrainConfig(backbone=backbone)
    train(table, features, place / "model", tasks=_tasks(), config=config, report=report)
    predict(place / "model", features, place / "predictions", config=PredictConfig(backbone=backbone), report=report)
    return evaluate_predictions(
        place / "predictions",
        table,
        place / "evaluation",
        config=EvaluateConfig(title=TITLE, remark=REMARK),
        report=report,
    )


def _show(results: Mapping[str, EvaluationResult]) -> None:
    rows = []
    for backbone, result in results.items():
        for task in result.evidence.tasks:
            score = task.metrics["balanced_accuracy"]
            interval = f"{score.low:.2f}–{score.high:.2f}"
            rows.append((task.answers.name, backbone, f"{score.value:.2f}", interval, len(task.answers), task.units))
    columns = ["task", "features", "balanced accuracy", "95 % interval", "slides", "patients"]
    print_table(columns, sorted(rows), title="test patients, painted slides")
    gate = results[BACKBONE].evidence.gate
    for share in gate.shares if gate is not None else ():
        where = f"{share.split} slides{f' of site {share.site}' if share.site else ''}"
        _say(f"OOD gate: {share.flagged} of {share.rows} {where} flagged")
