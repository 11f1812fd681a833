"""``histotl tile``: masks, grids and pictures, without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import ProgressBar
from histotl.cli._summary import print_plan, print_summary
from histotl.embed.config import TileConfig


def tile(
    slides: str,
    out: Path,
    /,
    *,
    tiling: Annotated[TileConfig, Parameter(name="*")] = TileConfig(),  # noqa: B008  frozen
    dry_run: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Find tissue and plan tiles; write masks as GeoJSON, coordinates, and preview pictures.

    Args:
        slides: A file, a folder, a quoted glob, or a manifest CSV.
        out: Folder for the results.
        tiling: Which tiles.
        dry_run: Say what would be done, and write nothing.
        json: Print the summary as JSON.
        quiet: No progress.
    """
    if dry_run:
        return print_plan(slides, out / tiling.spec.folder, tiling, as_json=json)
    from histotl.embed.tile import tile_slides

    with ProgressBar(quiet=quiet) as report:
        summary = tile_slides(slides, out, tiling=tiling, report=report)
    return print_summary(summary, out, as_json=json)
