"""One slide's plan: where its tissue is, which tiles are cut, and the pictures that show it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from histotl.core.atomic import write_bytes, write_text
from histotl.core.errors import NoTissueError
from histotl.core.provenance import Provenance
from histotl.core.registry import create, identified
from histotl.core.values import SlideInfo, TileGrid
from histotl.embed.config import TileConfig
from histotl.embed.flags import mask_flags
from histotl.store import layout
from histotl.store.coords import write_coords
from histotl.store.hdf5 import cannot_write
from histotl.wsi.mask import TissueMask, find_tissue, to_geojson
from histotl.wsi.preview import draw_preview, encode_jpeg, shrink_picture
from histotl.wsi.readers.base import Pixels
from histotl.wsi.slide import Slide
from histotl.wsi.tiling import best_level, plan_tiles, refuse_upsampling
from histotl.wsi.tissue.base import ReadsFile, TissueFinder

PREVIEW_PX = 1024
"""Longer side of the preview pictures."""

LEAST_PREVIEW_PX = 384
"""The same of slides so small that a level of about that size is shown."""


def tissue_finder(tiling: TileConfig) -> TissueFinder:
    """What the options name."""
    return cast("TissueFinder", create("tissue", tiling.tissue))


def source_digest(info: SlideInfo, tiling: TileConfig, finder: TissueFinder) -> str:
    """Digest of all that a slide's tiles come from beside the tile spec.

    The slide's bytes, its pixel size (an override changes every tile), the reader, the tissue settings with the
    finder's version and, where they name a file, what stands in it. It is recorded in the files, so that a run with
    another of these makes them again instead of taking them for current.
    """
    facts: dict[str, object] = {
        "slide": info.fingerprint,
        "mpp": (info.mpp_x, info.mpp_y),
        "reader": info.reader,
        "tissue": identified(finder),
        "min_area_um2": tiling.min_area_um2,
        "max_hole_um2": tiling.max_hole_um2,
    }
    if isinstance(finder, ReadsFile):
        facts["outlines"] = finder.digest(info)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def plan_slide(
    slide: Slide, tiling: TileConfig, finder: TissueFinder, out: Path, made: Provenance, source: str
) -> TileGrid:
    """Find tissue, lay the grid, and write the pictures, the outline and, last, the coordinates of one slide.

    Args:
        slide: The open slide.
        tiling: Which tiles.
        finder: Finds the tissue.
        out: Output folder.
        made: For the files' record.
        source: What :func:`source_digest` says.

    Raises:
        UpsamplingError: The slide is coarser than the tiles asked for.
        OutlineError: A file was to say where tissue is, and cannot be used.
        NoTissueError: No tile has enough tissue; the pictures are written nevertheless, to see why.
    """
    info, spec = slide.info, tiling.spec
    mask, grid = lay_grid(slide, tiling, finder)
    _write_pictures(slide, mask, grid, out)
    if not len(grid):
        raise no_tissue(info, mask, tiling)
    write_coords(
        layout.coords_path(out, spec, info.slide_id),
        info,
        grid,
        made,
        source_fingerprint=source,
        tissue_mm2=mask.area_mm2,
        flags=mask_flags(mask, info),
    )
    return grid


def lay_grid(slide: Slide, tiling: TileConfig, finder: TissueFinder) -> tuple[TissueMask, TileGrid]:
    """Find tissue and lay the grid; nothing is written, and the grid may be empty: see :func:`no_tissue`.

    Raises:
        UpsamplingError: The slide is coarser than the tiles asked for.
        OutlineError: A file was to say where tissue is, and cannot be used.
    """
    refuse_upsampling(slide.info, tiling.spec)  # before the slower work
    mask = find_tissue(slide, finder, min_area_um2=tiling.min_area_um2, max_hole_um2=tiling.max_hole_um2)
    return mask, plan_tiles(slide.info, tiling.spec, mask.mask, mask.scale_l0)


def sample_rows(n_tiles: int, wanted: int) -> npt.NDArray[np.int64]:
    """At most ``wanted`` rows spread evenly over a grid; always the same ones."""
    count = min(n_tiles, wanted)
    return np.arange(count, dtype=np.int64) * n_tiles // max(count, 1)


def _write_pictures(slide: Slide, mask: TissueMask, grid: TileGrid, out: Path) -> None:
    info = slide.info
    image = _overview(slide, mask, grid)
    scale_l0 = (info.width / image.shape[1], info.height / image.shape[0])
    preview = draw_preview(image, scale_l0=scale_l0, polygons=mask.polygons, grid=grid)
    try:
        # Not flushed: they show what the coordinates say, and are made again with them.
        write_bytes(layout.thumbnail_path(out, info.slide_id), encode_jpeg(image), flush=False)
        write_bytes(layout.contour_path(out, info.slide_id), encode_jpeg(preview), flush=False)
        write_text(layout.geojson_path(out, info.slide_id), to_geojson(mask, name=info.slide_id), flush=False)
    except OSError as error:
        raise cannot_write(layout.contour_path(out, info.slide_id), error) from error


def _overview(slide: Slide, mask: TissueMask, grid: TileGrid) -> Pixels:
    """The whole slide, ``PREVIEW_PX`` long: of the picture that the tissue was found on where that is large enough.

    Biopsies are many and small. Where the level that their tiles are read from would have to be decoded for it, which
    costs as much as reading them, a coarser level makes a smaller picture, if it is large enough to judge an outline
    by.
    """
    info = slide.info
    if mask.image is not None and max(mask.image.shape[:2]) >= min(PREVIEW_PX, max(info.width, info.height)):
        return shrink_picture(mask.image, PREVIEW_PX)
    if best_level(info, max(info.width, info.height) / PREVIEW_PX) <= grid.read_level:
        sides = {index: max(level.width, level.height) for index, level in enumerate(info.levels)}
        coarser = [index for index, side in sides.items() if index > grid.read_level and side >= LEAST_PREVIEW_PX]
        if coarser:
            return shrink_picture(slide.draft(min(coarser, key=sides.__getitem__), LEAST_PREVIEW_PX), LEAST_PREVIEW_PX)
    longest_um = max(info.width * info.mpp_x, info.height * info.mpp_y)
    image, _ = slide.thumbnail(max(info.mpp, longest_um / PREVIEW_PX))
    return image


def no_tissue(info: SlideInfo, mask: TissueMask, tiling: TileConfig) -> NoTissueError:
    """The error of a slide without a single tile: what was found on it, and the cure."""
    _, _, width, height = info.bounds_l0
    size_um = (width * info.mpp_x, height * info.mpp_y)
    if tiling.edge == "drop" and min(size_um) < tiling.spec.tile_um:
        seen = f"the slide has {size_um[0]:.4g}×{size_um[1]:.4g} µm"
        fact = f"{info.slide_id}: {seen}, less than a tile of {tiling.spec.tile_um:g} µm"
        return NoTissueError(fact, hint="pad it with --edge pad, or give a smaller --tile-px")
    seen = f"{mask.area_mm2:.3g} mm² of tissue"
    fact = f"{info.slide_id}: no tile has {tiling.min_tissue:.0%} tissue ({seen} found on the slide)"
    if not mask.polygons:
        return NoTissueError(
            fact, hint="look at its picture in contours/; give another --tissue or a lower --min-area-um2"
        )
    cure = f"lower --min-tissue, or give smaller tiles than {tiling.spec.tile_um:g} µm"
    return NoTissueError(fact, hint=cure)
