"""From a file to tiles: reading, and finding the tissue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide

from benchmarks.speed.harness import Case, case
from benchmarks.speed.inputs import MPP, TILE_PX, Inputs, Pixels, jpeg_decoding, planned, whole_grid
from histotl.core.values import TileGrid
from histotl.embed.config import TileConfig
from histotl.wsi.tiles import read_tiles


def _ours(path: Path, mpp: float = MPP) -> tuple[TileGrid, Callable[[], Pixels]]:
    slide, grid = whole_grid(path, mpp)
    return grid, lambda: read_tiles(slide, grid, slice(None))


def _raw_openslide(path: Path, grid: TileGrid) -> Callable[[], Pixels]:
    """OpenSlide, Pillow, NumPy: what most tools do for every tile."""
    slide, corners = openslide.OpenSlide(path), grid.coords_l0.tolist()

    def read() -> Pixels:
        tiles = np.empty((len(corners), TILE_PX, TILE_PX, 3), np.uint8)
        for index, (x, y) in enumerate(corners):
            tiles[index] = np.asarray(slide.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB"))
        return tiles

    return read


def _against_openslide(path: Path, name: str) -> Case:
    grid, ours = _ours(path)
    return Case(
        name=name,
        against="raw OpenSlide `read_region` → RGB → NumPy",
        ours=ours,
        reference=_raw_openslide(path, grid),
        same=np.array_equal,
        goal=0.25,
        units=len(grid),
        unit="tiles",
    )


def _against_decoding(path: Path, name: str, *, goal: float, mpp: float = MPP) -> Case:
    grid, ours = _ours(path, mpp)
    count, decode = jpeg_decoding(path, 0, len(grid) * grid.footprint_l0[0] * grid.footprint_l0[1])
    return Case(
        name=name,
        against=f"libjpeg-turbo decode of as many pixels ({count} JPEG tiles, floor)",
        ours=ours,
        reference=decode,
        goal=goal,
        units=len(grid),
        unit="tiles",
    )


@case("read/aligned-openslide")
def aligned_openslide(inputs: Inputs) -> Case:
    """Every tile is one JPEG; against the peers' way."""
    return _against_openslide(inputs.aligned, "tile read 224 px, aligned")


@case("read/aligned-decode")
def aligned_decode(inputs: Inputs) -> Case:
    """The same against the decoder alone."""
    return _against_decoding(inputs.aligned, "tile read 224 px, aligned", goal=1.3)


@case("read/unaligned-openslide")
def unaligned_openslide(inputs: Inputs) -> Case:
    """Tiles of 224 px from JPEG tiles of 256 px."""
    return _against_openslide(inputs.ordinary, "tile read 224 px from JPEG tiles of 256")


@case("read/unaligned-decode")
def unaligned_decode(inputs: Inputs) -> Case:
    """The same against the decoder alone."""
    return _against_decoding(inputs.ordinary, "tile read 224 px from JPEG tiles of 256", goal=1.6)


@case("read/half-scale")
def half_scale(inputs: Inputs) -> Case:
    """Tiles at twice the slide's pixel size, with no level between: read 448 px, resample to 224."""
    return _against_decoding(inputs.ordinary, "tile read 224 px at half scale", goal=1.8, mpp=2 * MPP)


@case("tissue/mask-and-grid")
def mask_and_grid(inputs: Inputs) -> Case:
    """All that happens to a slide before its first tile is read."""
    path, side = inputs.overview, inputs.scale.overview_px
    count, decode = jpeg_decoding(path, 2, (side / 16) ** 2)

    def plan() -> int:
        slide, grid = planned(path, TileConfig())
        slide.close()
        return len(grid)

    return Case(
        name=f"open, tissue mask, grid of {side}² px",
        against=f"libjpeg-turbo decode of the level it looks at ({count} JPEG tiles, floor)",
        ours=plan,
        reference=decode,
        same=lambda tiles, _: tiles > 0,
        goal=2.0,
    )
