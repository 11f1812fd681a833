"""``histotl train``: multi-task heads on cached features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, out, print_json
from histotl.core.errors import UsageError
from histotl.learn.config import TrainConfig


def train(
    table: Path,
    features: Path,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    task: tuple[str, ...] = (),
    tasks: Path | None = None,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008  frozen
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train heads for one or several tasks together, calibrate them on validation, and fit the OOD gate.

    Args:
        table: CSV with one row a slide (column slide_id) or patch (column path): labels, patient, and split if any.
        features: Output folder of embed.
        out_folder: Folder for the model.
        task: A task as text, such as "dysplasia: binary(column='grade', classes=('no','yes'))"; repeat for more.
        tasks: TOML file with [[task]] or [tasks.NAME] tables, instead of --task.
        config: The recipe.
        json: Print the result as JSON.
        quiet: No progress.
    """
    from histotl.learn.task import parse_task, tasks_from_toml
    from histotl.learn.train import train as run

    if bool(task) == (tasks is not None):
        raise UsageError("tasks are given twice or not at all", hint="use --task (repeatable) or --tasks FILE.toml")
    wanted = tasks_from_toml(tasks) if tasks is not None else tuple(parse_task(text) for text in task)
    with ProgressBar(quiet=quiet) as report:
        result = run(table, features, out_folder, tasks=wanted, config=config, report=report)
    if json:
        print_json(result.validation)
    else:
        for task_name, metrics in result.validation.items():
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            out().print(f"validation, {task_name}: {shown}", markup=False)
        out().print(f"model → {out_folder}", markup=False)
    return EXIT_OK
