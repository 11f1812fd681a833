"""``histotl explain``: what each tile did to the answers of a slide-level model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, out, print_json, print_table
from histotl.learn.explain_config import ExplainConfig


def explain(
    model: Path,
    features: Path,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    config: Annotated[ExplainConfig, Parameter(name="*", negative_iterable=())] = ExplainConfig(),  # noqa: B008  frozen
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Scores of every tile, or patch of a bag, for every class, and a comparison that says which of them to believe.

    Args:
        model: Folder made by train, of a slide-level model or with --bag.
        features: Output folder of embed, made with the same backbone, tiles and stain as the model's.
        out_folder: Folder that predict wrote with this model, or another; columns are added to its tile scores.
        config: Options.
        json: Print the comparison as JSON.
        quiet: No progress.
    """
    from histotl.learn.explaining import explain as run

    with ProgressBar(quiet=quiet) as report:
        found = run(model, features, out_folder, config=config, report=report)
    if json:
        print_json(
            {task: {name: value.to_dict() for name, value in each.items()} for task, each in found.faithfulness.items()}
        )
        return EXIT_OK
    rows = [
        (task, name, f"{v.score.value:.4f}", f"{v.score.low:.4f} to {v.score.high:.4f}")
        for task, each in found.faithfulness.items()
        for name, v in each.items()
    ]
    if rows:
        print_table(["task", "method", "faithfulness", "95 %"], rows)
        out().print(f"over {len(found.tested_on)} {found.unit}, in logits; an order by chance has 0", markup=False)
    for name, reason in found.left_out.items():
        out().print(f"{name}: {reason}", markup=False)
    out().print(f"{found.slides} {found.unit} → {found.scores}", markup=False)
    return EXIT_OK
