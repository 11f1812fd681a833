"""``histotl evaluate``: predictions against the truth, with intervals and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, out, print_json
from histotl.evaluate.config import EvaluateConfig


def evaluate(
    predictions: Path,
    table: Path,
    out_folder: Annotated[Path | None, Parameter(name="OUT")] = None,
    /,
    *,
    config: Annotated[EvaluateConfig, Parameter(name="*")] = EvaluateConfig(),  # noqa: B008  frozen
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Metrics with patient-bootstrap intervals; JSON, Markdown, and one page with pictures.

    Args:
        predictions: Folder made by predict.
        table: The label table.
        out_folder: Folder for the results; PREDICTIONS/evaluation when left out.
        config: Options.
        json: Print the metrics as JSON.
        quiet: No progress.
    """
    from histotl.evaluate.stage import evaluate_predictions as run

    target = out_folder if out_folder is not None else predictions / "evaluation"
    with ProgressBar(quiet=quiet) as report:
        result = run(predictions, table, target, config=config, report=report)
    if json:
        print_json(result.metrics)
        return EXIT_OK
    out().print((target / "metrics.md").read_text(encoding="utf-8"), markup=False)
    out().print(f"page → {target / 'report.html'}", markup=False)
    return EXIT_OK
