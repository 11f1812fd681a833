"""``histotl embed``: slides, or a set of patches, become embeddings files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import ProgressBar
from histotl.cli._summary import print_plan, print_summary
from histotl.core.errors import UsageError
from histotl.embed.config import EmbedConfig, TileConfig


def embed(
    slides: str,
    out: Path,
    /,
    *,
    patches: bool = False,
    tiling: Annotated[TileConfig, Parameter(name="*")] = TileConfig(),  # noqa: B008  frozen
    config: Annotated[EmbedConfig, Parameter(name="*")] = EmbedConfig(),  # noqa: B008  frozen
    dry_run: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Cut slides into tiles and embed them with one or several backbones in one read; goes on where it stopped.

    Args:
        slides: A file, a folder, a quoted glob, or a manifest CSV.
        out: Folder for the results, in TRIDENT's layout.
        patches: SLIDES is a set of patch images instead: a CSV with a column "path", or a folder.
        tiling: Which tiles; not for patches.
        config: Which features, and how they are computed.
        dry_run: Say what would be done, and write nothing.
        json: Print the summary as JSON.
        quiet: No progress.
    """
    if dry_run:
        if patches:
            raise UsageError("--dry-run does not go with --patches", hint="leave one of them out")
        from histotl.embed._quality import drop_condition
        from histotl.embed._views import views_of
        from histotl.image.measures import Measures

        views_of(config, tiling.tile_px)  # refuses an augmentation that cannot be read
        drop_condition(config.drop, Measures.parse(config.quality))  # and so does this a measure or a condition
        folder = out / tiling.spec.folder
        return print_plan(slides, folder, tiling, backbones=config.backbone, stains=(config.stain,), as_json=json)
    if patches and tiling != TileConfig():
        given = [f.name for f in dataclasses.fields(tiling) if getattr(tiling, f.name) != f.default]
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"patches are taken whole: {flags} has no effect on them", hint=f"leave out {flags}")
    from histotl.embed.engine import embed_slides
    from histotl.embed.patches import embed_patches

    with ProgressBar(quiet=quiet) as report:
        if patches:
            summary = embed_patches(slides, out, config=config, report=report)
        else:
            summary = embed_slides(slides, out, tiling=tiling, config=config, report=report)
    return print_summary(summary, out, as_json=json)
