"""Our reader beside the libraries that others read slides with, on the same tiles of the same slide."""

from __future__ import annotations

import time

import numpy as np
import openslide

from benchmarks.speed.cases_read import CHUNK, STRETCH, Bands, per_tile, reading
from benchmarks.speed.harness import Case, Figure, Measured, case
from benchmarks.speed.inputs import Inputs, Pixels
from benchmarks.speed.peers import start_library


def _against_openslide(bands: Bands, name: str) -> Case:
    """OpenSlide, Pillow, NumPy: what most tools do for every tile."""
    slide = openslide.OpenSlide(bands.slide.info.path)
    side, buffer = bands.grid.spec.tile_px, np.zeros_like(bands.buffer)

    def read() -> Measured:
        rows = bands.next("reference")
        tiles = buffer[: rows.stop - rows.start]
        cpu, began = time.process_time(), time.perf_counter()
        for index, (x, y) in enumerate(bands.corners(rows).tolist()):
            tiles[index] = np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))
        return per_tile(began, cpu, rows, tiles)

    def close() -> None:
        bands.close()
        slide.close()

    return Case(
        name=name,
        against="raw OpenSlide `read_region` → RGB → NumPy",
        ours=bands.read,
        reference=read,
        same=np.array_equal,
        goal=0.25,
        figures=(Figure(text="{} tiles/s", of=lambda s: 1 / s.ours),),
        close=close,
    )


@case("read/aligned-openslide")
def aligned_openslide(inputs: Inputs) -> Case:
    """Equal pixels, checked in the warm-up."""
    return _against_openslide(Bands(inputs.huge, 256, keep=True), "tile read 256 px, aligned")


@case("read/unaligned-openslide")
def unaligned_openslide(inputs: Inputs) -> Case:
    """Likewise."""
    return _against_openslide(Bands(inputs.huge, 224, keep=True), "tile read 224 px from JPEG tiles of 256")


def _against_library(
    inputs: Inputs, name: str, called: str, *, threads: int = 1, near: float = 0, tile_px: int = 224
) -> Case:
    """Another library that reads slides; its pixels are ours to ``near`` levels on average.

    With one thread, bands in turn, tile by tile as its users do. With more, the same long stretch every time, in
    batches that it fills with threads of its own, beside our reader threads.
    """
    library, bands = start_library(inputs, name, inputs.huge), Bands(inputs.huge, tile_px, keep=threads == 1)
    stretch = slice(0, min(STRETCH, len(bands.grid)))

    def ours() -> Measured:
        if threads == 1:
            return bands.read()
        with reading(bands.slide, bands.grid, stretch, threads) as work:
            cpu, began = time.process_time(), time.perf_counter()
            work()
            return per_tile(began, cpu, stretch)

    def theirs() -> Measured:
        rows = bands.next("reference") if threads == 1 else stretch
        took, count = library.read(bands.corners(rows), tile_px, threads=threads), rows.stop - rows.start
        return Measured(value=took.value / count, cpu=took.cpu / count, result=rows)

    def same(kept: Pixels | None, rows: slice) -> bool:
        """Asked again, to save them; of a stretch, which nobody keeps, the beginning is read again."""
        if kept is None:
            rows = slice(rows.start, min(rows.stop, 2 * CHUNK + 1))
            kept = bands.reader.read(rows)
        saved = inputs.folder / f"{name}.npy"
        library.read(bands.corners(rows), tile_px, threads=threads, save=saved)
        found = np.load(saved)
        if not near:
            return np.array_equal(kept, found)
        return kept.shape == found.shape and bool(np.abs(kept.astype(np.int16) - found).mean() <= near)

    def close() -> None:
        bands.close()
        library.worker.close()

    what = "" if threads == 1 else f", {stretch.stop} tiles on {threads} threads"
    return Case(
        name=f"tile read {tile_px} px from JPEG tiles of 256{what}",
        against=called,
        ours=ours,
        reference=theirs,
        same=same,
        goal=1.0,
        figures=(Figure(text="{} tiles/s", of=lambda s: 1 / s.ours),),
        close=close,
    )


@case("read/cucim")
def cucim(inputs: Inputs) -> Case:
    """Equal pixels, as with the others."""
    return _against_library(inputs, "cucim", "cuCIM `read_region` → NumPy")


@case("read/cucim-two-threads")
def cucim_two_threads(inputs: Inputs) -> Case:
    """The same where it reads batches."""
    return _against_library(inputs, "cucim", "cuCIM `read_region` of batches, two workers", threads=2)


@case("read/fastslide")
def fastslide(inputs: Inputs) -> Case:
    """With a cache as large as ours may get."""
    called = "FastSlide `read_region` → NumPy, with its cache; pixels 1 to 3 levels off, by a coarser decode"
    return _against_library(inputs, "fastslide", called, near=3)


@case("read/tiffslide")
def tiffslide(inputs: Inputs) -> Case:
    """The one that is all Python."""
    return _against_library(inputs, "tiffslide", "TiffSlide `read_region` as an array")
