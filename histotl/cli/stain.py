"""``histotl stain``: what stain normalisation does to slides and features, and how sturdy features are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, EXIT_SOME_FAILED, ProgressBar, out, print_json, print_table
from histotl.cli._summary import print_failures, print_plan
from histotl.embed.config import TileConfig
from histotl.evaluate.stain.config import StainConfig


def stain(
    slides: str,
    out_folder: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    tiling: Annotated[TileConfig, Parameter(name="*")] = TileConfig(),  # noqa: B008  frozen
    config: Annotated[StainConfig, Parameter(name="*")] = StainConfig(),  # noqa: B008  frozen
    dry_run: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Compare stain normalisers on a sample of tiles: colours, stain vectors, site AUC, and features under jitter.

    Args:
        slides: A file, a folder, a quoted glob, or a manifest CSV.
        out_folder: Folder for the page and its figures.
        tiling: Which tiles.
        config: What is compared, and how.
        dry_run: Say what would be done, and write nothing.
        json: Print all figures as JSON.
        quiet: No progress.
    """
    if dry_run:
        from histotl.evaluate.stain.origins import read_origins
        from histotl.wsi.manifest import load_manifest

        read_origins(config, [entry.slide_id for entry in load_manifest(slides)])  # refuses a table that does not fit
        stains = (*config.stain, config.vectors)
        return print_plan(slides, out_folder, tiling, backbones=config.backbone, stains=stains, as_json=json)
    from histotl.evaluate.stain.stage import compare_stains

    with ProgressBar(quiet=quiet) as report:
        result = compare_stains(slides, out_folder, tiling=tiling, config=config, report=report)
    evidence = result.evidence
    if json:
        print_json(evidence.to_dict())
    else:
        rows = evidence.headline
        if rows:
            print_table(["figure", "method", "slides", "before", "after", "change"], rows)
        out().print(f"page → {result.page}", markup=False)
    print_failures(evidence.failures, out_folder)
    return EXIT_OK if evidence.ok else EXIT_SOME_FAILED
