"""``histotl info``: what a slide is, before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, EXIT_SOME_FAILED, out, print_error, print_json
from histotl.core.errors import HistotlError, SlideError
from histotl.core.values import SlideInfo
from histotl.embed.config import TileConfig


def info(
    slides: Annotated[tuple[Path, ...], Parameter(required=True)],
    /,
    *,
    tiling: Annotated[TileConfig, Parameter(name="*")] = TileConfig(),  # noqa: B008  frozen
    json: bool = False,
) -> int:
    """Geometry, pixel size and where it came from, levels, and what would be read for the wanted tiles.

    Args:
        slides: Slide files.
        tiling: The tiles that would be made.
        json: Print JSON.
    """
    described, status = [], EXIT_OK
    for path in slides:
        try:
            described.append(_describe(path, tiling))
        except SlideError as error:
            print_error(error)
            status = EXIT_SOME_FAILED
    if json:
        print_json(described)
        return status
    for fields in described:
        width = max(len(key) for key in fields)
        for key, value in fields.items():
            out().print(f"{key:<{width}}  {value}", markup=False)
        out().print()
    return status


def _describe(path: Path, tiling: TileConfig) -> dict[str, object]:
    from histotl.wsi.slide import open_slide
    from histotl.wsi.tiling import plan_tiles

    with open_slide(path, mpp=tiling.mpp_override, reader=tiling.reader) as slide:
        fields = _facts(slide.info)
        try:
            grid = plan_tiles(slide.info, tiling.spec, None)
        except HistotlError as error:
            fields["tiles"] = f"none: {error.message}; {error.hint}"
        else:
            level = slide.info.levels[grid.read_level]
            fields["tiles"] = (
                f"{len(grid)} positions of {tiling.spec.tile_um:g} µm; {grid.footprint_l0[0]:.2f} level-0 px each, "
                f"read from level {grid.read_level} (downsample {level.downsample:g})"
            )
            fields["decoding"] = slide.decoding(grid.read_level)
    return fields


def _facts(info: SlideInfo) -> dict[str, object]:
    width_mm, height_mm = info.width * info.mpp_x / 1e3, info.height * info.mpp_y / 1e3
    sizes = ", ".join(f"{level.width}×{level.height} (/{level.downsample:g})" for level in info.levels)
    return {
        "file": str(info.path),
        "reader": f"{info.reader} ({info.vendor})",
        "size": f"{info.width}×{info.height} px, {width_mm:.2f}×{height_mm:.2f} mm",
        "mpp": f"{info.mpp_x:g}×{info.mpp_y:g} µm/px (from {info.mpp_source})",
        "levels": sizes,
        "scanned": "x={} y={} w={} h={}".format(*info.bounds_l0),
        "fingerprint": info.fingerprint,
    }
