"""What the cases work on, made in a folder when it is first asked for: painted slides and random numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
import torch

from benchmarks.speed.mosaic import CELL, Mosaic, Texture, blobs
from histotl.core.registry import create
from histotl.core.values import TileGrid, TileSpec
from histotl.embed.config import TileConfig
from histotl.paint.slide import paint_slide
from histotl.paint.stains import SITES, site_stain
from histotl.paint.values import PaintedSlide, SlideRecipe
from histotl.wsi.mask import find_tissue
from histotl.wsi.slide import Slide, open_slide
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tiling import plan_tiles
from histotl.wsi.tissue.base import TissueFinder

Pixels = npt.NDArray[np.uint8]

MPP = 0.5
TILE_PX = 224
FILE_TILE_PX = 256
"""Side of the JPEG tiles of an ordinary slide file."""

_GLASS_LEVEL = 225
"""A pixel of a scan whose darkest channel is brighter is glass."""

_APERIO_JPEG2000_RGB = 33005
_JPEG2000_DB = 40
"""Peak signal-to-noise ratio of the JPEG 2000 tiles."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the inputs.

    Args:
        slide_px: Side of the painted slide at 0.5 µm/px.
        huge_px: Side of the largest slide.
        flow_px: Side of the slide that is embedded without a network.
        end_px: Side of the slide that is embedded with a fast network.
        slow_px: Side of the slide that is embedded with a slow one.
        cnn: Slow network of timm.
        transformer: Likewise.
        batch: Tiles in the cases on one batch.
        small_slides: Biopsies with ``small_tiles`` (columns, rows) tiles each, and the large slide with as many tiles.
        biopsy_tiles: Columns and rows of tiles of as many biopsies of some hundred tiles.
        biopsies_together: Those of a slide with as many tiles as all of these.
        small_tiles: Columns and rows of tiles of a biopsy.
        large_tiles: Those of the large slide.
        tiny_tiles: Those of as many still smaller slides.
        tiny_together: Those of a slide with as many tiles as all of these.
        memory_slides: Slides of the run whose memory is measured.
        bag_files: Embeddings files that are opened one after the other.
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
    huge_px: int = 40960
    flow_px: int = 12288
    end_px: int = 8192
    slow_px: int = 5120
    cnn: str = "resnet50"
    transformer: str = "vit_small_patch16_224"
    batch: int = 32
    small_slides: int = 50
    biopsy_tiles: tuple[int, int] = (20, 20)
    biopsies_together: tuple[int, int] = (200, 100)
    small_tiles: tuple[int, int] = (14, 14)
    large_tiles: tuple[int, int] = (98, 100)
    tiny_tiles: tuple[int, int] = (7, 7)
    tiny_together: tuple[int, int] = (49, 50)
    memory_slides: int = 200
    bag_files: int = 200
    rows: int = 20_000
    dim: int = 1024
    picked: int = 512
    bags: int = 16
    bag_rows: tuple[int, int] = (200, 1800)
    patients: int = 1000
    resamples: int = 2000
    head_rows: int = 1000
    head_steps: int = 320


FULL = Scale()
TINY = Scale(
    slide_px=768,
    huge_px=4096,
    flow_px=2048,
    end_px=2048,
    slow_px=1024,
    cnn="mobilenetv3_small_050",
    transformer="vit_tiny_patch16_224",
    batch=2,
    small_slides=2,
    biopsy_tiles=(2, 2),
    biopsies_together=(4, 2),
    small_tiles=(2, 1),
    large_tiles=(2, 2),
    tiny_tiles=(1, 1),
    tiny_together=(1, 2),
    memory_slides=3,
    bag_files=3,
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
        peers: Folder with checkouts of other tools, named ``TRIDENT`` and ``CLAM``; None when there are none.
        real: A slide whose tissue replaces the painted one in the large slides; see :func:`real_slide`.
    """

    def __init__(
        self, folder: Path, scale: Scale = FULL, *, peers: Path | None = None, real: Path | None = None
    ) -> None:
        self.folder, self.scale, self.peers, self.real = folder, scale, peers, real

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
    def texture(self) -> Texture:
        """Tissue without end."""
        if self.real is not None:
            with tifffile.TiffFile(self.real) as tif:
                image = tif.series[0].levels[0].asarray()
            return Texture.of(_square(image, image.min(axis=2) < _GLASS_LEVEL, least=0.9))
        return Texture.of(_square(self.painted.image, self.painted.tissue, least=1.0))

    @cached_property
    def huge(self) -> Path:
        """Half tissue, half glass, in JPEG tiles of 256 px, with levels 1, 4 and 16."""
        return self._mosaic("huge.svs", self.scale.huge_px)

    @cached_property
    def flow(self) -> Path:
        """A smaller sibling: thousands of tiles."""
        return self._mosaic("flow.svs", self.scale.flow_px)

    @cached_property
    def end(self) -> Path:
        """Hundreds of tiles."""
        return self._mosaic("end.svs", self.scale.end_px)

    @cached_property
    def slow(self) -> Path:
        """Some hundred tiles."""
        return self._mosaic("slow.svs", self.scale.slow_px)

    @cached_property
    def small_slides(self) -> Path:
        """Folder of biopsies, all tissue, each of another place of the texture."""
        return self._many("small", self.scale.small_tiles)

    @cached_property
    def large_slide(self) -> Path:
        """One slide with as many tiles as all of them together."""
        return self._full("large.svs", self.scale.large_tiles)

    @cached_property
    def biopsies(self) -> Path:
        """Folder of as many slides with some hundred tiles each."""
        return self._many("biopsies", self.scale.biopsy_tiles)

    @cached_property
    def biopsies_together(self) -> Path:
        """One slide with as many tiles as all of those together."""
        return self._full("biopsies-together.svs", self.scale.biopsies_together)

    @cached_property
    def tiny_slides(self) -> Path:
        """Folder of as many still smaller slides."""
        return self._many("tiny", self.scale.tiny_tiles)

    @cached_property
    def tiny_together(self) -> Path:
        """One slide with as many tiles as all of those together."""
        return self._full("tiny-together.svs", self.scale.tiny_together)

    @cached_property
    def many_slides(self) -> Path:
        """Folder of very many tiny slides: copies."""
        folder = self.folder / "many"
        folder.mkdir()
        sources = sorted(self.tiny_slides.glob("*.svs"))
        for i in range(self.scale.memory_slides):
            shutil.copy(sources[i % len(sources)], folder / f"{i:03}.svs")
        return folder

    @cached_property
    def jpeg2000(self) -> Path:
        """The painted slide in JPEG 2000 tiles of 256 px, as some Aperio slides are."""
        side = self.scale.slide_px // 2 // FILE_TILE_PX * FILE_TILE_PX
        margin = (self.scale.slide_px - side) // 2
        image = self.painted.image[margin : margin + side, margin : margin + side]
        path = self.folder / "jpeg2000.svs"
        tiles = (
            bytes(
                imagecodecs.jpeg2k_encode(
                    np.ascontiguousarray(image[y : y + FILE_TILE_PX, x : x + FILE_TILE_PX]),
                    level=_JPEG2000_DB,
                    codecformat="j2k",
                    mct=False,
                )
            )
            for y in range(0, side, FILE_TILE_PX)
            for x in range(0, side, FILE_TILE_PX)
        )
        with tifffile.TiffWriter(path) as tif:
            tif.write(
                tiles,
                shape=image.shape,
                dtype=np.uint8,
                tile=(FILE_TILE_PX, FILE_TILE_PX),
                photometric="rgb",
                compression=_APERIO_JPEG2000_RGB,
                description=f"Aperio Image Library (mosaic)\r\n{side}x{side} (256x256) J2K/RGB|AppMag = 20|MPP = {MPP}",
                metadata=None,
            )
        return path

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

    def _many(self, name: str, tiles: tuple[int, int]) -> Path:
        for i in range(self.scale.small_slides):
            self._full(f"{name}/{i:03}.svs", tiles, shift=(97 * 16 * i, 61 * 16 * i))
        return self.folder / name

    def _full(self, name: str, tiles: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Path:
        """A slide that is tissue from border to border."""
        across, down = (n * TILE_PX for n in tiles)
        return Mosaic(texture=self.texture, width=across, height=down, shift=shift).write(self.folder / name)

    def _mosaic(self, name: str, side: int) -> Path:
        field = blobs(side, side, seed=side // CELL)
        return Mosaic(texture=self.texture, width=side, height=side, field=field, mpp=MPP).write(self.folder / name)


def real_slide() -> Path | None:
    """The crop of a public scan that ``HISTOTL_REAL_DATA`` has, when that variable is set."""
    folder = os.environ.get("HISTOTL_REAL_DATA")
    path = None if folder is None else Path(folder) / "slides" / "cmu-1-small-region.svs"
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"HISTOTL_REAL_DATA is {folder!r}, but there is no {path}")
    return path


def _square(image: Pixels, tissue: npt.NDArray[np.bool_], *, least: float) -> Pixels:
    """The largest square, its side a multiple of 128 px, that is tissue to the fraction asked for."""
    total = np.pad(tissue.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    for side in range(min(tissue.shape) // 128 * 128, 0, -128):
        inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
        if inside.max() >= least * side * side:
            y, x = np.unravel_index(int(inside.argmax()), inside.shape)
            return image[y : y + side, x : x + side]
    raise ValueError("there is no square of 128 px of tissue")


def planned(path: Path, tiling: TileConfig) -> tuple[Slide, TileGrid]:
    """An open slide and the tiles that ``embed_slides`` would take of it."""
    slide = open_slide(path)
    mask = find_tissue(
        slide,
        cast("TissueFinder", create("tissue", tiling.tissue)),
        min_area_um2=tiling.min_area_um2,
        max_hole_um2=tiling.max_hole_um2,
    )
    return slide, plan_tiles(slide.info, tiling.spec, mask.mask, mask.scale_l0)


def whole_grid(path: Path, mpp: float, tile_px: int = TILE_PX) -> tuple[Slide, TileGrid]:
    """An open slide and all of its tiles, glass too."""
    slide = open_slide(path)
    return slide, plan_tiles(slide.info, TileSpec(tile_px=tile_px, mpp=mpp))


def resident_tiles(path: Path, tiling: TileConfig, most: int | None = None) -> torch.Tensor:
    """The first tiles of a slide in memory, uint8 (n, h, w, 3)."""
    slide, grid = planned(path, tiling)
    with slide:
        return torch.from_numpy(read_tiles(slide, grid, slice(most)))


class JpegTiles:
    """The compressed tiles of one level, for the floor: libjpeg-turbo on bytes that are in memory already.

    Args:
        path: A slide whose tiles are whole JPEG streams, as those made here are.
        level: Of its pyramid.
    """

    def __init__(self, path: Path, level: int = 0) -> None:
        with tifffile.TiffFile(path) as tif:
            page = tif.series[0].levels[level].keyframe
            self.offsets, self.sizes = page.dataoffsets, page.databytecounts
            self.columns = -(-page.imagewidth // page.tilewidth)
            self.side = page.tilewidth
            trial = len(self.offsets) // 2
            honest, _, _ = page.decode(self._bytes(path, [trial])[0], trial, _fullsize=True)
        self.path = path
        if not np.array_equal(honest[0], simplejpeg.decode_jpeg(self.fetch([trial])[0])):
            raise ValueError(f"{path.name}: the bare decoder gives other pixels than tifffile")

    def fetch(self, tiles: Sequence[int]) -> list[bytes]:
        """Compressed bytes of tiles."""
        return self._bytes(self.path, tiles)

    def under(self, corners_l0: npt.NDArray[np.int64], footprint_l0: tuple[float, float], reach: int = 0) -> list[int]:
        """Tiles of level 0 that some squares, or pixels as near to them as ``reach``, lie on, sorted."""
        found: set[int] = set()
        last = len(self.offsets) // self.columns - 1, self.columns - 1
        for x, y in corners_l0.tolist():
            right, below = (
                int(a + side + reach - 1e-6) // self.side for a, side in zip((x, y), footprint_l0, strict=True)
            )
            columns = range(max(0, x - reach) // self.side, min(last[1], right) + 1)
            rows = range(max(0, y - reach) // self.side, min(last[0], below) + 1)
            found.update(row * self.columns + column for row in rows for column in columns)
        return sorted(found)

    def spread(self, tiles: Sequence[int], pixels: float) -> list[bytes]:
        """Bytes of as many of some tiles, spread evenly, as hold so many pixels."""
        count = max(1, min(len(tiles), round(pixels / self.side**2)))
        return self.fetch([tiles[i] for i in (np.arange(count) * len(tiles) // count).tolist()])

    def _bytes(self, path: Path, tiles: Sequence[int]) -> list[bytes]:
        with path.open("rb") as file:
            data = []
            for index in tiles:
                file.seek(self.offsets[index])
                data.append(file.read(self.sizes[index]))
        return data


def decode_all(data: Sequence[bytes]) -> int:
    """The floor itself: decode every tile into the same array."""
    buffer = np.empty((FILE_TILE_PX, FILE_TILE_PX, 3), np.uint8)
    for tile in data:
        simplejpeg.decode_jpeg(tile, buffer=buffer)
    return len(data)
