"""``histotl retrieve``: the training rows nearest to a case, as the evidence for its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, print_json, print_table
from histotl.cli._console import out as console
from histotl.learn.retrieve_config import RetrieveConfig


def retrieve(
    model: Path,
    features: Path,
    /,
    *,
    out: Path,
    k: Annotated[int, Parameter(name=("--k", "-k"))] = 10,
    config: Annotated[
        RetrieveConfig, Parameter(name="*", negative=None, negative_bool="no-", negative_iterable=())
    ] = RetrieveConfig(),  # noqa: B008  frozen
    json: bool = False,
    quiet: bool = False,
) -> int:
    """The k nearest training rows of every slide or patch, by a model with an embedding task.

    Args:
        model: Folder made by train, with a task such as "type: embedding(column='type')".
        features: Output folder of embed, made with the same backbone, tiles and stain as the model's.
        out: CSV to write, one row a neighbour.
        k: Neighbours of each.
        config: Options.
        json: Print what was found as JSON.
        quiet: No progress.
    """
    from histotl.learn.retrieval import retrieve as run

    with ProgressBar(quiet=quiet) as report:
        found = run(model, features, out, k=k, config=config, report=report)
    if json:
        print_json(found.to_dict())
        return EXIT_OK
    if found.metrics:
        rows = [
            (name, f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}")
            for name, value in found.metrics.items()
        ]
        print_table(["metric", "value", "95 %"], rows)
        said = f"over {found.measured} labelled rows with a training row of their class"
        console().print(said, markup=False)
    console().print(f"{found.queries} rows, {found.kept} training rows → {found.path}", markup=False)
    return EXIT_OK
