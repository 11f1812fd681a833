"""From a file to tiles. Every repetition reads another part of the slide, so no cache of an earlier one helps."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from benchmarks.speed.harness import Case, Figure, Measured, Sides, case
from benchmarks.speed.inputs import MPP, Inputs, JpegTiles, Pixels, decode_all, planned, whole_grid
from benchmarks.speed.workers import Worker, python
from histotl.core.values import TileGrid
from histotl.embed._reading import PART_TILES
from histotl.embed.config import TileConfig
from histotl.embed.device import Forwards, compute_settings
from histotl.wsi.slide import Slide
from histotl.wsi.tiles import TileReader

BAND_PX = 2048
"""Height in level-0 pixels of what one repetition reads: all tissue of such a band, from left to right."""

CHUNK = 64
"""Tiles asked for at once: a batch, as in a run."""

STRETCH = 6000
"""Tiles that two threads share: so many that the end, where one of them is alone, does not count."""

REACH_PX = 2
"""Neighbouring pixels that resampling at least looks at; a tile of the file that holds any of them is needed."""


class Bands:
    """Bands of one slide, read one after the other with one reader, as a run does.

    Args:
        path: The slide.
        tile_px: Side of the tiles.
        mpp: Their pixel size.
        shift_px: Level-0 pixels by which the grid is moved off the file's own tiles.
        keep: The result has the pixels.
    """

    def __init__(self, path: Path, tile_px: int, mpp: float = MPP, shift_px: int = 0, *, keep: bool = False) -> None:
        self.slide, grid = planned(path, TileConfig(tile_px=tile_px, mpp=mpp))
        limit = np.array([self.slide.info.width, self.slide.info.height]) - np.ceil(grid.footprint_l0)
        corners = grid.coords_l0 + shift_px
        inside = (corners <= limit).all(axis=1)
        self.grid = dataclasses.replace(grid, coords_l0=corners[inside], tissue_fraction=grid.tissue_fraction[inside])
        self.reader = TileReader(self.slide, self.grid)
        band = self.grid.coords_l0[:, 1] // BAND_PX
        starts = np.flatnonzero(np.diff(band, prepend=-1)).tolist()
        self.rows = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(band)], strict=True)]
        # A run reads into buffers of a batch, again and again; only a comparison of pixels needs all of them.
        largest = max(rows.stop - rows.start for rows in self.rows)
        self.buffer = np.zeros((largest if keep else CHUNK, tile_px, tile_px, 3), np.uint8)
        self.turn = {"ours": 0, "reference": 0}

    def next(self, side: str) -> slice:
        """Rows of the next band of one side; both sides get the same ones."""
        rows = self.rows[self.turn[side] % len(self.rows)]
        self.turn[side] += 1
        return rows

    def read(self) -> Measured:
        """Read the next band; seconds a tile, as bands differ in size."""
        rows = self.next("ours")
        if self.turn["ours"] > 1 and rows.start == 0:
            self.reader.close()
            self.reader = TileReader(self.slide, self.grid)
        cpu, began = time.process_time(), time.perf_counter()
        for start in range(rows.start, rows.stop, CHUNK):
            stop = min(start + CHUNK, rows.stop)
            place = (start - rows.start) % len(self.buffer)
            self.reader.read(slice(start, stop), out=self.buffer[place : place + stop - start])
        return per_tile(began, cpu, rows, self.buffer[: rows.stop - rows.start])

    def close(self) -> None:
        self.reader.close()
        self.slide.close()

    def corners(self, rows: slice) -> npt.NDArray[np.int64]:
        """Upper left corners of the tiles of a band, in level-0 pixels."""
        return self.grid.coords_l0[rows]


def per_tile(began: float, cpu: float, rows: slice, result: object = None) -> Measured:
    count = rows.stop - rows.start
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Measured(value=seconds / count, cpu=cpu / count, result=result)


def _against_decoding(bands: Bands, name: str, goal: float) -> Case:
    files = JpegTiles(bands.slide.info.path)
    footprint = bands.grid.footprint_l0
    area = footprint[0] * footprint[1]
    reach = 0 if footprint[0] == bands.grid.spec.tile_px else REACH_PX

    def decode() -> Measured:
        rows = bands.next("reference")
        data = files.spread(files.under(bands.corners(rows), footprint), (rows.stop - rows.start) * area)
        cpu, began = time.process_time(), time.perf_counter()
        decode_all(data)
        measured = per_tile(began, cpu, rows)
        # Whole tiles are decoded, so the area is met to half a tile; the rest is made up for.
        exact = (rows.stop - rows.start) * area / (len(data) * files.side**2)
        return dataclasses.replace(measured, value=measured.value * exact)

    def decoded_again(_: Sides) -> float:
        # After the last band a new reader begins with the first.
        seen = bands.rows[: (bands.turn["ours"] - 1) % len(bands.rows) + 1]
        needed: set[int] = set()
        for rows in seen:
            needed.update(files.under(bands.corners(rows), footprint, reach))
        return bands.reader.stats.jpeg_decoded / len(needed)

    return Case(
        name=name,
        against="libjpeg-turbo decode of as many pixels, bytes in memory (floor)",
        ours=bands.read,
        reference=decode,
        goal=goal,
        figures=(
            Figure(text="{} tiles/s", of=lambda s: 1 / s.ours),
            Figure(text="JPEG tiles decoded for each one needed: {}", of=decoded_again, goal=1.0),
        ),
        close=bands.close,
    )


@case("read/aligned-256")
def aligned(inputs: Inputs) -> Case:
    """Every tile is one JPEG."""
    return _against_decoding(Bands(inputs.huge, 256), "tile read 256 px, aligned", 1.3)


@case("read/offset-256")
def offset(inputs: Inputs) -> Case:
    """Every tile lies on four."""
    return _against_decoding(Bands(inputs.huge, 256, shift_px=100), "tile read 256 px, moved by 100 px", 1.6)


@case("read/unaligned-224")
def unaligned(inputs: Inputs) -> Case:
    """The default tile."""
    return _against_decoding(Bands(inputs.huge, 224), "tile read 224 px from JPEG tiles of 256", 1.6)


@case("read/offset-512")
def large(inputs: Inputs) -> Case:
    """Large tiles off the file's raster."""
    return _against_decoding(Bands(inputs.huge, 512, shift_px=100), "tile read 512 px, moved by 100 px", 1.8)


@case("read/half-scale")
def half_scale(inputs: Inputs) -> Case:
    """Tiles at twice the slide's pixel size, with no level between: read 512 px, resample to 256."""
    return _against_decoding(Bands(inputs.huge, 256, mpp=2 * MPP), "tile read 256 px at half scale (40x to 20x)", 1.8)


@case("read/jpeg2000")
def jpeg2000(inputs: Inputs) -> Case:
    """Tiles of 256 px, each one JPEG 2000 code-stream. A new reader each time: the slide is small."""
    slide, grid = whole_grid(inputs.jpeg2000, MPP, tile_px=256)
    with tifffile.TiffFile(inputs.jpeg2000) as tif:
        page, data = tif.pages[0], []
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            tif.filehandle.seek(start)
            data.append(tif.filehandle.read(size))

    def read() -> Pixels:
        with TileReader(slide, grid) as reader:
            return reader.read(slice(None))

    return Case(
        name=f"tile read 256 px, JPEG 2000, {len(grid)} tiles",
        against="OpenJPEG decode of the same tiles, bytes in memory (floor)",
        ours=read,
        reference=lambda: np.stack([imagecodecs.jpeg2k_decode(tile) for tile in data]),
        same=np.array_equal,
        units=len(grid),
        unit="tiles",
        close=slide.close,
    )


@contextmanager
def reading(slide: Slide, grid: TileGrid, rows: slice, threads: int) -> Iterator[Callable[[], None]]:
    """Work for a number of threads, which take parts of the rows in turn, with the settings and buffers of a run."""
    parts = iter(range(rows.start, rows.stop, PART_TILES))
    side, lock = grid.spec.tile_px, threading.Lock()
    buffers = [np.zeros((PART_TILES, side, side, 3), np.uint8) for _ in range(threads)]
    with compute_settings(Forwards()), TileReader(slide, grid) as reader:

        def take(out: Pixels) -> None:
            while True:
                with lock:
                    start = next(parts, None)
                if start is None:
                    return
                stop = min(start + PART_TILES, rows.stop)
                reader.read(slice(start, stop), out[: stop - start])

        def run() -> None:
            workers = [threading.Thread(target=take, args=(buffer,)) for buffer in buffers]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        yield run


@case("read/two-threads-aligned")
def two_threads_aligned(inputs: Inputs) -> Case:
    """Where a tile is one JPEG, threads do what the processes do."""
    return _two_threads(inputs, 256, "aligned")


@case("read/two-threads")
def two_threads(inputs: Inputs) -> Case:
    """The default tile, cut from up to four decoded ones that threads share."""
    return _two_threads(inputs, 224, "from JPEG tiles of 256")


def _two_threads(inputs: Inputs, tile_px: int, how: str) -> Case:
    """Time with two over time with one: our threads on one reader against processes that only decode."""
    bands = Bands(inputs.huge, tile_px)
    files = JpegTiles(inputs.huge)
    rows = slice(0, min(STRETCH, len(bands.grid)))
    bytes_file = inputs.folder / f"two-threads-{tile_px}.bin"
    tiles = files.fetch(files.under(bands.corners(rows), bands.grid.footprint_l0))
    bytes_file.write_bytes(b"".join(len(tile).to_bytes(4, "little") + tile for tile in tiles))
    workers = [Worker([python(), "-m", "benchmarks.speed.decoder", str(bytes_file)]) for _ in range(2)]

    def ours() -> Measured:
        took = []
        for threads in (1, 2):
            with reading(bands.slide, bands.grid, rows, threads) as work:
                began = time.perf_counter()
                work()
                took.append(time.perf_counter() - began)
        return Measured(value=took[1] / took[0])

    def processes() -> Measured:
        alone = workers[0].call()["seconds"]
        began = time.perf_counter()
        for worker in workers:
            worker.send()
        for worker in workers:
            worker.receive()
        # Two did twice the work.
        return Measured(value=(time.perf_counter() - began) / (2 * alone))

    def close() -> None:
        for worker in workers:
            worker.close()
        bands.close()

    return Case(
        name=f"two reader threads over one, {rows.stop - rows.start} tiles of {tile_px} px {how}",
        against="two processes of bare libjpeg-turbo over one",
        ours=ours,
        reference=processes,
        goal=1.0,
        measure="",
        figures=(
            Figure(text="speed-up {}", of=lambda s: 1 / s.ours),
            Figure(text="of the processes {}", of=lambda s: 1 / s.reference),
        ),
        close=close,
    )
