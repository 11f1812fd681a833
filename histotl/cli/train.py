"""``histotl train``: multi-task heads on cached features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, out, print_json, print_table
from histotl.cli._tasks import print_comparison, tasks_of
from histotl.learn.config import TrainConfig


def train(
    table: Path,
    features: Path,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    task: tuple[str, ...] = (),
    tasks: Path | None = None,
    config: Annotated[
        TrainConfig, Parameter(name="*", negative=None, negative_bool="no-", negative_iterable=())
    ] = TrainConfig(),  # noqa: B008  frozen
    dry_run: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train heads for one or several tasks together, calibrate them on validation, and fit the OOD gate.

    Args:
        table: CSV with one row a slide (column slide_id) or patch (column path): labels, patient,
            split and covariates if any.
        features: Output folder of embed.
        out_folder: Folder for the model.
        task: A task as text, such as "dysplasia: binary(column='grade', classes=('no','yes'))"; repeat for more. Kinds:
            binary, multiclass, multilabel, ordinal, regression, survival, embedding.
        tasks: TOML file with [[task]] or [tasks.NAME] tables, instead of --task.
        config: The recipe.
        dry_run: Make every check and print how many labels there are, and train nothing.
        json: Print the validation figures as JSON.
        quiet: No progress.
    """
    from histotl.learn.train import preview
    from histotl.learn.train import train as run

    wanted = tasks_of(task, tasks)
    if dry_run:
        return _print_labels(preview(table, features, tasks=wanted, config=config), as_json=json)
    with ProgressBar(quiet=quiet) as report:
        result = run(table, features, out_folder, tasks=wanted, config=config, report=report)
    if json:
        print_json(result.validation)
    else:
        for task_name, metrics in result.validation.items():
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            out().print(f"validation, {task_name}: {shown}", markup=False)
        print_comparison(result.comparison)
        for task_name in result.answered_alone:
            out().print(f"{task_name}: answered by its own networks", markup=False)
        out().print(f"model → {out_folder}", markup=False)
    return EXIT_OK


def _print_labels(counts: Mapping[str, Mapping[str, Mapping[str, int]]], *, as_json: bool) -> int:
    if as_json:
        print_json(counts)
        return EXIT_OK
    rows = [
        (task, split, ", ".join(f"{name} {count}" for name, count in found.items()))
        for task, splits in counts.items()
        for split, found in splits.items()
    ]
    print_table(["task", "split", "labels"], rows)
    out().print("nothing was trained", markup=False)
    return EXIT_OK
