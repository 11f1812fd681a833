"""``histotl export``: the trained aggregator of a model in a file of its own, for ``train --pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, out
from histotl.learn.export_config import ExportConfig


def export(
    model: Path,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    config: Annotated[ExportConfig, Parameter(name="*")] = ExportConfig(),  # noqa: B008  frozen
) -> int:
    """Keep the aggregator of a slide-level model, to start others from with train --pretrained.

    Args:
        model: Folder made by train, with an aggregator that has trained weights, such as abmil.
        out_folder: Folder for aggregator.safetensors.
        config: Options.
    """
    from histotl.learn.pretrained import export_aggregator

    written = export_aggregator(model, out_folder, config=config)
    out().print(f"aggregator → {written}", markup=False)
    return EXIT_OK
