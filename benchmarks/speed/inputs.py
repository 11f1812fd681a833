"""What the cases work on, made in a folder when it is first asked for: painted slides and random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
import torch

from histotl.core.registry import create
from histotl.core.values import TileGrid, TileSpec
from histotl.embed.config import TileConfig
from histotl.paint.slide import paint_slide
from histotl.paint.stains import SITES, site_stain
from histotl.paint.values import PaintedSlide, SlideRecipe
from histotl.wsi.mask import find_tissue
from histotl.wsi.pyramid import pyramid_factors, shrink, write_pyramid
from histotl.wsi.slide import Slide, open_slide
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tiling import plan_tiles

Pixels = npt.NDArray[np.uint8]

MPP = 0.5
TILE_PX = 224
FILE_TILE_PX = 256
"""Side of the JPEG tiles of an ordinary slide file."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the inputs.

    Args:
        slide_px: Side of the painted slide at 0.5 µm/px.
        overview_px: Side of the slide whose tissue is found; only the level that is looked at is painted.
        batch: Tiles in the cases on one batch.
        overlap_px: Of the tiles that are embedded end to end: a larger one makes more tiles of the same slide.
        small_slides: Slides with ``small_tiles`` (columns, rows) tiles each, and the large one with as many tiles.
        small_tiles: Columns and rows of tiles of a small slide.
        large_tiles: Those of the large one.
        rows: Rows of the embeddings file.
        dim: Length of its vectors, and of those that heads learn from.
        picked: Rows that are read at random.
        bags: Slides that attention pooling learns from.
        bag_rows: Fewest and most tiles of a bag.
        patients: Patients whose answers are resampled, ten rows each.
        resamples: Of the bootstrap; a multiple of 50.
        head_rows: Rows that a multi-task head is trained on.
        head_steps: Optimiser steps.
    """

    slide_px: int = 4096
    overview_px: int = 20480
    batch: int = 32
    overlap_px: int = 112
    small_slides: int = 20
    small_tiles: tuple[int, int] = (4, 3)
    large_tiles: tuple[int, int] = (16, 15)
    rows: int = 20_000
    dim: int = 1024
    picked: int = 512
    bags: int = 32
    bag_rows: tuple[int, int] = (50, 250)
    patients: int = 1000
    resamples: int = 2000
    head_rows: int = 1000
    head_steps: int = 320


FULL = Scale()
TINY = Scale(
    slide_px=768,
    overview_px=4096,
    batch=2,
    overlap_px=0,
    small_slides=2,
    small_tiles=(2, 1),
    large_tiles=(2, 2),
    rows=64,
    dim=16,
    picked=8,
    bags=4,
    bag_rows=(3, 6),
    patients=20,
    resamples=50,
    head_rows=40,
    head_steps=4,
)


class Inputs:
    """Files and arrays, each made once.

    Args:
        folder: Where the files go; the caller removes it.
        scale: Sizes.
    """

    def __init__(self, folder: Path, scale: Scale = FULL) -> None:
        self.folder, self.scale = folder, scale

    @cached_property
    def painted(self) -> PaintedSlide:
        """The slide that all others are cut from."""
        rng = np.random.default_rng(0)
        side_um = self.scale.slide_px * MPP
        recipe = SlideRecipe(
            slide_id="painted",
            background="normal",
            stain=site_stain(SITES[0], rng),
            lesion="adenoma_low",
            lesion_fraction=0.4,
            size_um=(side_um, side_um),
            mpp=MPP,
        )
        return paint_slide(recipe, rng)

    @cached_property
    def ordinary(self) -> Path:
        """An SVS with JPEG tiles of 256 px: tiles of 224 px cut through them."""
        return self._slide("ordinary.svs", self.painted.image, FILE_TILE_PX)

    @cached_property
    def aligned(self) -> Path:
        """The same pixels in JPEG tiles of 224 px: every tile that is read is one JPEG."""
        return self._slide("aligned.svs", self.painted.image, TILE_PX)

    @cached_property
    def overview(self) -> Path:
        """A larger slide of which only the coarsest level shows tissue; level 0 is blank and never looked at."""
        side = self.scale.overview_px
        piece = shrink(self.painted.image, self.scale.slide_px // 16, self.scale.slide_px // 16)
        times = -(-(side // 16) // len(piece))
        # Mirrored, so that the tissue goes on over the seams.
        row = np.concatenate([piece if i % 2 == 0 else piece[:, ::-1] for i in range(times)], axis=1)
        whole = np.concatenate([row if i % 2 == 0 else row[::-1] for i in range(times)])[: side // 16, : side // 16]
        blank = np.full((1, 1, 3), 245, np.uint8)
        levels = [np.broadcast_to(blank, (s, s, 3)) for s in (side, side // 4)]
        path = self.folder / "overview.svs"
        return write_pyramid(path, levels[0], mpp=MPP, levels=[*levels, np.ascontiguousarray(whole)], vendor="aperio")

    @cached_property
    def small_slides(self) -> Path:
        """Folder of many small slides."""
        across, down = (n * TILE_PX for n in self.scale.small_tiles)
        folder = self.folder / "small"
        room = self.scale.slide_px - across, self.scale.slide_px - down
        corners = np.random.default_rng(1).integers(0, room, size=(self.scale.small_slides, 2))
        for i, (x, y) in enumerate(corners.tolist()):
            self._slide(f"small/{i:02}.svs", self.painted.image[y : y + down, x : x + across], FILE_TILE_PX)
        return folder

    @cached_property
    def large_slide(self) -> Path:
        """One slide with as many tiles as all small ones together."""
        across, down = (n * TILE_PX for n in self.scale.large_tiles)
        return self._slide("large.svs", self.painted.image[:down, :across], FILE_TILE_PX)

    @cached_property
    def batch(self) -> torch.Tensor:
        """uint8 (b, 224, 224, 3): the tiles with most tissue."""
        image, tissue = self.painted.image, self.painted.tissue
        count = self.scale.slide_px // TILE_PX
        corners = [(y * TILE_PX, x * TILE_PX) for y in range(count) for x in range(count)]
        areas = [(slice(y, y + TILE_PX), slice(x, x + TILE_PX)) for y, x in corners]
        areas.sort(key=lambda area: -int(tissue[area].sum()))
        return torch.from_numpy(np.stack([image[area] for area in areas[: self.scale.batch]]))

    @cached_property
    def features(self) -> npt.NDArray[np.float32]:
        """Random float32 (rows, dim)."""
        shape = (self.scale.rows, self.scale.dim)
        return np.random.default_rng(2).standard_normal(shape, dtype=np.float32)

    def _slide(self, name: str, image: Pixels, tile_px: int) -> Path:
        levels = pyramid_factors(image.shape[1], image.shape[0])
        return write_pyramid(
            self.folder / name, image, mpp=MPP, levels=levels, tile_px=tile_px, quality=80, vendor="aperio"
        )


def planned(path: Path, tiling: TileConfig) -> tuple[Slide, TileGrid]:
    """An open slide and the tiles that ``embed_slides`` would take of it."""
    slide = open_slide(path)
    mask = find_tissue(
        slide,
        create("tissue", tiling.tissue),
        min_area_um2=tiling.min_area_um2,
        max_hole_um2=tiling.max_hole_um2,
    )
    return slide, plan_tiles(slide.info, tiling.spec, mask.mask, mask.scale_l0)


def whole_grid(path: Path, mpp: float) -> tuple[Slide, TileGrid]:
    """An open slide and all of its tiles, glass too."""
    slide = open_slide(path)
    return slide, plan_tiles(slide.info, TileSpec(tile_px=TILE_PX, mpp=mpp))


def resident_tiles(path: Path, tiling: TileConfig) -> torch.Tensor:
    """All tiles of a slide in memory, uint8 (n, h, w, 3)."""
    slide, grid = planned(path, tiling)
    with slide:
        return torch.from_numpy(read_tiles(slide, grid, slice(None)))


def jpeg_decoding(path: Path, level: int, pixels: float) -> tuple[int, Callable[[], list[Pixels]]]:
    """The floor of reading: libjpeg-turbo on the compressed tiles of a level, which are in memory already.

    Args:
        path: The slide.
        level: Of its pyramid.
        pixels: How many to decode; as many tiles as hold so many, spread evenly over the level.

    Returns:
        The number of tiles, and what decodes them.
    """
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[level].keyframe
        count = max(1, min(len(page.dataoffsets), round(pixels / (page.tilewidth * page.tilelength))))
        which = np.arange(count) * len(page.dataoffsets) // count
        data = []
        for index in which.tolist():
            tif.filehandle.seek(page.dataoffsets[index])
            data.append(tif.filehandle.read(page.databytecounts[index]))
        tables = page.jpegtables
        honest, _, _ = page.decode(data[0], int(which[0]), jpegtables=tables, _fullsize=True)
    if not np.array_equal(honest[0], imagecodecs.jpeg8_decode(data[0], tables=tables)):
        raise ValueError(f"{path.name}: the bare decoder gives other pixels than tifffile")
    return count, lambda: [imagecodecs.jpeg8_decode(tile, tables=tables) for tile in data]
