"""``histotl predict``: a trained model answers for new features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, ProgressBar, out, print_json
from histotl.learn.config import PredictConfig


def predict(
    model: Path,
    features: Path,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    config: Annotated[
        PredictConfig, Parameter(name="*", negative=None, negative_bool="no-", negative_iterable=())
    ] = PredictConfig(),  # noqa: B008  frozen
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Probabilities, OOD and failure scores for every slide or patch, and scores for every tile.

    Args:
        model: Folder made by train.
        features: Output folder of embed, made with the same backbone, tiles and stain as the model's.
        out_folder: Folder for predictions.csv and the tile scores.
        config: Options.
        json: Print where the predictions are as JSON.
        quiet: No progress.
    """
    from histotl.learn.predict import predict as run

    with ProgressBar(quiet=quiet) as report:
        folder = run(model, features, out_folder, config=config, report=report)
    if json:
        print_json({"folder": folder, "predictions": folder / "predictions.csv"})
    else:
        out().print(f"predictions → {folder / 'predictions.csv'}", markup=False)
    return EXIT_OK
