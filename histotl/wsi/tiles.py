"""The pixels of a grid's tiles, every compressed tile of the file decoded once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from threading import Lock, local
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from histotl.core.errors import SlideReadError, UsageError
from histotl.core.values import TileGrid
from histotl.wsi._cache import Cost, DecodedTiles
from histotl.wsi._handles import Handles
from histotl.wsi._layout import Layout
from histotl.wsi._resample import COPY, Workspace, windows_l0
from histotl.wsi.readers.base import BatchDecoder, Pixels
from histotl.wsi.slide import Slide, in_blocks

_MAX_BYTES = 512 * 2**20
"""Decoded pixels that wait for their next tile; a row of a grid needs far less."""

_TOGETHER_BYTES = 640 * 1024
"""Source pixels that are resampled with one call: several small tiles, as long as a core's cache holds them."""

_UNIT_TILES = 32
"""Tiles of a grid that are read together, at most, when more are asked for at once."""

_UNIT_SHARE = 8
"""Part of the memory, as its inverse, that tiles read together may need: those in use are beyond its limit."""


_Part = tuple[int, int, list[int], Pixels]
"""Kind, row, row of the layout's table, and where the tile goes."""


@dataclass(frozen=True, kw_only=True)
class ReadStats:
    """What reading has cost so far, as sums over threads.

    Args:
        tiles_read: Tiles of the grid.
        jpeg_decoded: Compressed tiles of the file that were decoded; equal to the number needed if none was read twice.
        bytes_read: Compressed bytes fetched.
        read_s: Seconds in fetching them.
        decode_s: Seconds in decoding.
        resample_s: Seconds in putting tiles together and resampling.
        fallback_tiles: Tiles of the grid that were read as regions, because the file's tiles cannot be reached.
        fallback_s: Seconds in that.
    """

    tiles_read: int = 0
    jpeg_decoded: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    resample_s: float = 0.0
    fallback_tiles: int = 0
    fallback_s: float = 0.0


class TileReader:
    """Reads the tiles of a grid from any number of threads.

    Every compressed tile that a tile of the grid touches is decoded once, kept until the last such tile has been read,
    and shared by all threads. In the order of the grid that is about one row of compressed tiles. Reading a tile twice,
    or in another order, gives the same pixels; it may cost memory (up to ``max_bytes``) or a further decode.

    Args:
        slide: The slide that the grid was planned for. Nobody else reads from it until the reader is closed; it then
            stays open.
        grid: The plan.
        max_bytes: Decoded bytes that are kept for tiles to come.
        decoder: Decodes the JPEG tiles of a read together, where the file's can be had as whole JPEG files; a tile that
            it does not take is decoded as all are where this is None. The pixels are then the decoder's.

    Raises:
        SlideOpenError: The file cannot be opened again.
    """

    def __init__(
        self, slide: Slide, grid: TileGrid, *, max_bytes: int = _MAX_BYTES, decoder: BatchDecoder | None = None
    ) -> None:
        side, level = grid.spec.tile_px, grid.read_level
        corners = grid.coords_l0.astype(np.float64)
        self._slide, self._grid = slide, grid
        self._windows = windows_l0(slide.info, corners, grid.footprint_l0, (side, side), level)
        self._kinds = self._windows.kinds()
        self._handles = Handles(partial(copy.copy, slide), slide, keep_first=True)
        self._direct: tuple[Layout, DecodedTiles] | None = None
        tiled = slide.tiled(level) if len(grid) and not in_blocks(self._windows) else None
        if tiled is not None:
            layout = Layout.of(self._windows, tiled, slide.info.levels[level])
            self._direct = layout, DecodedTiles(tiled, layout.uses, max_bytes, decoder)
        area = self._windows.scale[0] * self._windows.scale[1] * side * side
        self._unit = min(_UNIT_TILES, max(1, int(max_bytes / (_UNIT_SHARE * 3 * area))))
        self._seen = bytearray(len(grid))
        self._lock, self._mine = Lock(), local()
        self._tiles_read = self._fallback_tiles = 0
        self._resample_s = self._fallback_s = 0.0

    @property
    def decoder(self) -> str:
        """Name of the batch decoder that JPEG tiles go to; ``cpu`` where they are decoded one by one, or are none."""
        return "cpu" if self._direct is None else self._direct[1].decoder

    @property
    def stats(self) -> ReadStats:
        """What reading has cost so far."""
        cost = Cost() if self._direct is None else self._direct[1].cost
        with self._lock:
            return ReadStats(
                tiles_read=self._tiles_read,
                jpeg_decoded=cost.decoded,
                bytes_read=cost.bytes_read,
                read_s=cost.read_s,
                decode_s=cost.decode_s,
                resample_s=self._resample_s,
                fallback_tiles=self._fallback_tiles,
                fallback_s=self._fallback_s,
            )

    def read(self, rows: slice | npt.NDArray[np.integer], out: Pixels | None = None) -> Pixels:
        """Tiles of some rows of the grid, in the order asked for; from several threads at once if wished.

        Args:
            rows: Which tiles.
            out: C-contiguous uint8 (n, tile_px, tile_px, 3) to write into; a new array when None. Half written when
                reading fails.

        Returns:
            uint8 RGB (n, tile_px, tile_px, 3).

        Raises:
            SlideReadError: A region cannot be decoded; nothing is put in its place.
            UsageError: ``out`` has another form.
        """
        wanted = np.arange(len(self._grid))[rows]
        side = self._grid.spec.tile_px
        shape = (len(wanted), side, side, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            fact = f"tiles of shape {shape} cannot be written into {out.dtype} of shape {out.shape}"
            raise UsageError(fact, hint="give a C-contiguous uint8 array of that shape")
        if not isinstance(rows, slice) and len(different := np.unique(wanted)) < len(wanted):
            np.take(self.read(different), np.searchsorted(different, wanted), axis=0, out=out)
            return out
        for start in range(0, len(wanted), self._unit):
            stop = start + self._unit
            self._read_unit(wanted[start:stop], out[start:stop])
        return out

    def close(self) -> None:
        """Give back memory and what the reader opened itself; the slide stays open."""
        self._handles.close()
        if self._direct is not None:
            self._direct[1].clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_unit(self, rows: npt.NDArray[np.int64], out: Pixels) -> None:
        if self._direct is None:
            regions = list(enumerate(rows.tolist()))
        else:
            layout, cache = self._direct
            self._read_tiled(layout, cache, rows, out)
            regions = [(index, row) for index, row in enumerate(rows.tolist()) if not layout.covered[row]]
        if regions:
            self._read_regions(regions, out)
        with self._lock:
            self._tiles_read += len(rows)

    def _read_tiled(self, layout: Layout, cache: DecodedTiles, rows: npt.NDArray[np.int64], out: Pixels) -> None:
        uses: dict[int, int] = {}
        whole: list[tuple[int, Pixels]] = []
        parts: list[_Part] = []
        needs: list[tuple[int, list[int]]] = []
        seen = self._seen
        facts = zip(rows.tolist(), layout.covered[rows].tolist(), layout.alone[rows].tolist(), strict=True)
        places, kinds = layout.table[rows].tolist(), self._kinds[rows].tolist()
        for index, (row, covered, alone) in enumerate(facts):
            if not covered:
                continue
            if alone >= 0:
                whole.append((alone, out[index]))
                needs.append((row, [alone]))
                continue
            needed = layout.needed(places[index])
            new = 1 - seen[row]  # reading a row again must not use up what the rows to come need
            seen[row] = 1
            for tile in needed:
                uses[tile] = uses.get(tile, 0) + new
            parts.append((kinds[index], row, places[index], out[index]))
            needs.append((row, needed))
        with cache.hold(uses, whole) as (tiles, failed):
            if failed:
                self._refuse(failed, needs)
            began = perf_counter()
            for kind, group in groupby(parts, key=itemgetter(0)):
                self._assemble(layout, kind, list(group), tiles)
            took = perf_counter() - began
        with self._lock:
            self._resample_s += took

    def _refuse(self, failed: Mapping[int, SlideReadError], needs: Sequence[tuple[int, list[int]]]) -> None:
        """Raise an error that names the first tile of the grid that needs a compressed tile which there is not."""
        row, tile = next((row, tile) for row, needed in needs for tile in needed if tile in failed)
        error = failed[tile]
        x, y = self._grid.coords_l0[row].tolist()
        width, height = self._grid.footprint_l0
        where = f"region x={x} y={y} of {width:g} x {height:g} level-0 px"
        fact = f"{self._slide.info.slide_id}: {where} cannot be read: {error.message}"
        raise SlideReadError(fact, hint=error.hint) from error

    def _assemble(self, layout: Layout, kind: int, parts: list[_Part], tiles: Mapping[int, Pixels]) -> None:
        """Put tiles of one kind together."""
        background = self._slide.info.background
        if kind == COPY:
            for _, _, place, out in parts:
                layout.paste(place, tiles, out, background)
            return
        work: Workspace | None = getattr(self._mine, "work", None)
        if work is None:
            work = self._mine.work = Workspace()
        left, top, right, bottom = parts[0][2][:4]
        height, width = bottom - top, right - left
        together = max(1, _TOGETHER_BYTES // (height * width * 3))
        for start in range(0, len(parts), together):
            some = parts[start : start + together]
            regions = work.regions(len(some), height, width)
            for (_, _, place, _), region in zip(some, regions, strict=True):
                layout.paste(place, tiles, region, background)
            work.render(self._windows, [part[1] for part in some], regions, [part[3] for part in some])

    def _read_regions(self, regions: Sequence[tuple[int, int]], out: Pixels) -> None:
        grid = self._grid
        began = perf_counter()
        with self._handles.borrow() as slide:
            for index, row in regions:
                x, y = grid.coords_l0[row].tolist()
                out[index] = slide.read(x, y, grid.footprint_l0, grid.spec.tile_px, grid.read_level)
        took = perf_counter() - began
        with self._lock:
            self._fallback_tiles += len(regions)
            self._fallback_s += took


def read_tiles(slide: Slide, grid: TileGrid, rows: slice | npt.NDArray[np.integer]) -> Pixels:
    """Read some tiles of a grid, in the order asked for.

    Args:
        slide: The slide that the grid was planned for.
        grid: The plan.
        rows: Which of its tiles.

    Returns:
        uint8 RGB (n, tile_px, tile_px, 3).

    Raises:
        SlideReadError: A region cannot be decoded; nothing is put in its place.
    """
    part = replace(grid, coords_l0=grid.coords_l0[rows], tissue_fraction=grid.tissue_fraction[rows])
    with TileReader(slide, part) as reader:
        return reader.read(slice(None))
