"""``histotl crossval``: every patient tested by models that never saw them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, out, print_table
from histotl.cli._tasks import print_comparison, tasks_of
from histotl.learn.config import TrainConfig
from histotl.learn.cross_config import CrossConfig


def crossval(
    table: Path,
    features: Path,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    task: tuple[str, ...] = (),
    tasks: Path | None = None,
    cross: Annotated[CrossConfig, Parameter(name="*")] = CrossConfig(),  # noqa: B008  frozen
    config: Annotated[
        TrainConfig, Parameter(name="*", negative=None, negative_bool="no-", negative_iterable=())
    ] = TrainConfig(),  # noqa: B008  frozen
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Patient-grouped folds: predictions for every case by models that were trained without its patient.

    Args:
        table: As for train; rows whose split is test stay out.
        features: Output folder of embed.
        out_folder: Folder for crossval.json and, for each seed, a predictions folder that evaluate reads.
        task: A task as text; repeat for more.
        tasks: TOML file with [[task]] or [tasks.NAME] tables, instead of --task.
        cross: How often.
        config: The recipe.
        json: Print the figures as JSON.
        quiet: No progress.
    """
    from histotl.learn.cross_validate import SUMMARY_NAME, cross_validate

    wanted = tasks_of(task, tasks)
    with ProgressBar(quiet=quiet) as report:
        result = cross_validate(table, features, out_folder, tasks=wanted, config=config, cross=cross, report=report)
    if json:
        out().print((out_folder / SUMMARY_NAME).read_text(encoding="utf-8"), markup=False)
        return EXIT_OK
    rows = [
        (name, metric, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}")
        for name, metrics in result.metrics.items()
        for metric, found in metrics.items()
    ]
    print_table(["task", "metric", "mean", "95 %"], rows)
    print_comparison(result.comparison)
    shown = ", ".join(map(str, result.predictions))
    out().print(f"predictions → {shown}", markup=False)
    return EXIT_OK
