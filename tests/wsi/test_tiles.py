"""Reading a grid: every compressed tile decoded once by any number of threads, the same pixels as `Slide.read`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import SlideReadError, UsageError
from histotl.core.values import Level, SlideInfo, TileGrid, TileSpec
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.slide import Slide, open_array, open_slide
from histotl.wsi.tiles import TileReader, read_tiles
from histotl.wsi.tiling import plan_tiles
from tests.wsi.direct_files import (
    Encode,
    content,
    jpeg_own_tables,
    jpeg_progressive,
    jpeg_rgb,
    jpeg_ycbcr,
    tables_of,
    without,
    write_tiled,
)

Pixels = npt.NDArray[np.uint8]
BACKGROUND = (241, 240, 239)


class Fake:
    """A slide in memory that is a backend and its one tiled level, and counts what is asked of it."""

    def __init__(self, width: int, height: int, tile: tuple[int, int] = (32, 32), *, mpp: float = 0.5) -> None:
        self.tile_size = tile
        self.shape = (-(-height // tile[1]), -(-width // tile[0]))
        self.present = np.ones(self.shape, bool)
        rng = np.random.default_rng(7)
        self.pixels = rng.integers(0, 256, (self.shape[0] * tile[1], self.shape[1] * tile[0], 3), dtype=np.uint8)
        level = Level(width=width, height=height, downsample=1.0)
        self.info = SlideInfo(
            path=Path("fake.svs"), slide_id="fake", reader="fake", vendor="fake", width=width, height=height, mpp_x=mpp,
            mpp_y=mpp, mpp_source="fake", levels=(level,), bounds_l0=(0, 0, width, height), background=BACKGROUND,
        )  # fmt: skip
        self.decoded: Counter[int] = Counter()
        self.fetched: Counter[int] = Counter()
        self.fetches = self.regions = self.opened = self.closed = 0
        self.broken: set[int] = set()
        self.cut_off: set[int] = set()
        self.error: Exception | None = None
        self.delay_s = 0.0
        self.into: list[int] = []
        self._lock = threading.Lock()

    def slide(self) -> Slide:
        def reopen() -> Fake:
            with self._lock:
                self.opened += 1
            return self

        return Slide(self.info, reopen)

    def tiled(self, level: int) -> Fake:
        assert level == 0
        return self

    def fetch(self, tiles: Sequence[int]) -> list[bytes]:
        assert self.present.ravel()[list(tiles)].all(), "a tile that the file does not have was asked for"
        assert len(set(tiles)) == len(tiles)
        with self._lock:
            self.fetches += 1
            self.fetched.update(tiles)
        if self.cut_off & set(tiles):
            raise SlideReadError("fake.svs: the file ends before", hint="copy it again")
        return [b"%d" % tile for tile in tiles]

    def decode(self, tile: int, data: bytes, out: Pixels | None = None) -> Pixels:
        assert data == b"%d" % tile
        width, height = self.tile_size
        if out is None:
            out = np.empty((height, width, 3), np.uint8)
        assert out.shape == (height, width, 3)
        assert out.flags.c_contiguous
        if self.delay_s:
            time.sleep(self.delay_s)
        with self._lock:
            self.decoded[tile] += 1
            self.into.append(out.ctypes.data)
        if self.error is not None and tile in self.broken:
            raise self.error
        if tile in self.broken:
            out[:] = 0
            raise SlideReadError(f"fake.svs: tile {tile} is no JPEG", hint="copy it again")
        row, column = divmod(tile, self.shape[1])
        out[:] = self.pixels[row * height :][:height, column * width :][:, :width]
        return out

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        with self._lock:
            self.regions += 1
        return self.pixels[y_l0 : y_l0 + height, x_l0 : x_l0 + width].copy()

    def close(self) -> None:
        with self._lock:
            self.closed += 1


def plan(fake: Fake, **spec: Any) -> TileGrid:
    return plan_tiles(fake.info, TileSpec(**{"tile_px": 28, "mpp": 0.5, "min_tissue": 0.0} | spec))


def expected(fake: Fake, grid: TileGrid, rows: Iterable[int]) -> Pixels:
    slide, side = fake.slide(), grid.spec.tile_px
    tiles = [slide.read(*grid.coords_l0[row].tolist(), grid.footprint_l0, side, grid.read_level) for row in rows]
    return np.array(tiles).reshape(-1, side, side, 3)


def touched(fake: Fake, grid: TileGrid, margin: float = 0.0) -> set[int]:
    """Compressed tiles under the tiles of a grid, by brute force over pixels."""
    under = np.zeros(fake.pixels.shape[:2], bool)
    width, height = grid.footprint_l0
    for x, y in grid.coords_l0.tolist():
        top, left = max(0, int(np.floor(y - margin))), max(0, int(np.floor(x - margin)))
        under[top : int(np.ceil(y + height + margin)), left : int(np.ceil(x + width + margin))] = True
    under[fake.info.height :] = under[:, fake.info.width :] = False
    th, tw = fake.tile_size[::-1]
    cells = under.reshape(fake.shape[0], th, fake.shape[1], tw).any(axis=(1, 3))
    return set(np.flatnonzero(cells).tolist())


def read_all(reader: TileReader, grid: TileGrid, *, threads: int, unit: int) -> Pixels:
    """The whole grid in units that threads take in turns, as the engine does."""
    side = grid.spec.tile_px
    out = np.zeros((len(grid), side, side, 3), np.uint8)

    def one(start: int) -> None:
        reader.read(slice(start, start + unit), out=out[start : start + unit])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(0, len(grid), unit)))
    return out


GRIDS = {
    "unaligned": {},
    "aligned": {"tile_px": 32},
    "overlapping": {"tile_px": 28, "overlap_px": 11},
    "several tiles a side": {"tile_px": 90},
    "resampled": {"mpp": 1.0},
    "a little resampled": {"mpp": 0.501},
    "enlarged": {"mpp": 0.4, "allow_upsampling": True},
    "no whole place": {"mpp": 0.8127},
    "over the border": {"tile_px": 40, "edge": "pad"},
    "resampled over the border": {"mpp": 1.0, "edge": "pad"},
}


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("spec", GRIDS.values(), ids=GRIDS.keys())
def test_every_compressed_tile_is_decoded_once(spec: dict[str, Any], threads: int) -> None:
    fake = Fake(333, 270)
    grid = plan(fake, **spec)
    with fake.slide() as slide, TileReader(slide, grid) as reader:
        tiles = read_all(reader, grid, threads=threads, unit=5)
        stats = reader.stats
    assert len(grid) >= 6
    assert set(fake.decoded.values()) == {1}
    assert fake.fetched == fake.decoded
    assert touched(fake, grid) <= set(fake.decoded) <= touched(fake, grid, margin=2 * 100)
    assert fake.regions == 0
    assert stats.tiles_read == len(grid)
    assert stats.jpeg_decoded == len(fake.decoded)
    assert stats.bytes_read == sum(len(b"%d" % tile) for tile in fake.decoded)
    assert stats.fallback_tiles == 0
    assert stats.read_s >= 0
    assert stats.decode_s > 0
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    tile=st.tuples(st.sampled_from([16, 24, 48]), st.sampled_from([16, 32])),
    tile_px=st.integers(1, 50),
    overlap=st.floats(0, 0.9),
    mpp=st.sampled_from([0.3, 0.499, 0.5, 0.5033, 0.77, 1.0, 2.0, 3.7]),
    pad=st.booleans(),
    missing=st.floats(0, 0.3),
    kept=st.floats(0.2, 1),
    max_bytes=st.sampled_from([0, 20_000, 2**29]),
    seed=st.integers(0, 99),
)
def test_tiles_are_those_of_the_slides_own_read(
    size: tuple[int, int], tile: tuple[int, int], tile_px: int, overlap: float, mpp: float, pad: bool, missing: float,
    kept: float, max_bytes: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    fake = Fake(*size, tile)
    fake.present = rng.random(fake.shape) >= missing
    grid = plan(
        fake, tile_px=tile_px, overlap_px=int(overlap * tile_px), mpp=mpp, edge="pad" if pad else "drop",
        allow_upsampling=True,
    )  # fmt: skip
    rows = np.flatnonzero(rng.random(len(grid)) < kept)[:80]
    grid = replace(grid, coords_l0=grid.coords_l0[rows], tissue_fraction=grid.tissue_fraction[rows])
    order = rng.permutation(len(grid))
    with TileReader(fake.slide(), grid, max_bytes=max_bytes) as reader:
        tiles = reader.read(order)
        regions = fake.regions
        assert np.array_equal(tiles, expected(fake, grid, order))
        assert reader.stats.tiles_read == len(grid)
        assert (reader.stats.fallback_tiles > 0) == (regions > 0)


def test_tiles_that_nobody_needs_are_left_alone() -> None:
    fake = Fake(640, 640)
    whole = plan(fake)
    rows = np.array([0, 1, len(whole) // 2])
    grid = replace(whole, coords_l0=whole.coords_l0[rows], tissue_fraction=whole.tissue_fraction[rows])
    read_tiles(fake.slide(), grid, slice(None))
    assert set(fake.decoded) == touched(fake, grid)
    assert len(fake.decoded) < 10 < fake.present.size


def test_one_unit_is_fetched_with_one_call() -> None:
    fake = Fake(333, 270)
    grid = plan(fake)
    with TileReader(fake.slide(), grid) as reader:
        reader.read(slice(0, 11))
        assert fake.fetches == 1
        reader.read(slice(11, 22))
        assert fake.fetches == 2
        assert set(fake.fetched.values()) == {1}, "what is left over from the row before is not fetched again"


def test_a_tile_that_is_one_compressed_tile_is_decoded_in_place() -> None:
    fake = Fake(320, 320)
    grid = plan(fake, tile_px=32)
    out = np.zeros((len(grid), 32, 32, 3), np.uint8)
    with TileReader(fake.slide(), grid) as reader:
        reader.read(slice(None), out=out)
    assert sorted(fake.into) == [row.ctypes.data for row in out]


def test_rows_in_any_order_and_more_than_once() -> None:
    fake = Fake(333, 270)
    grid = plan(fake)
    rows = np.random.default_rng(0).permutation(len(grid))
    with TileReader(fake.slide(), grid) as reader:
        assert np.array_equal(reader.read(rows), expected(fake, grid, rows))
        assert set(fake.decoded.values()) == {1}, "the order does not matter while there is room"
        again = np.array([5, 3, 5, -1, 0, 5])
        assert np.array_equal(reader.read(again), expected(fake, grid, again))
        assert reader.read(slice(7, 7)).shape == (0, 28, 28, 3)
    with TileReader(fake.slide(), grid) as reader:
        fake.decoded.clear()
        for start in range(0, len(grid), 5):
            reader.read(slice(start, start + 5))
            reader.read(np.array([start]))  # must not use up what the rows to come need
        assert np.array_equal(reader.read(slice(None)), expected(fake, grid, range(len(grid))))


def test_memory_is_one_band_in_the_order_of_the_grid() -> None:
    fake = Fake(640, 640)
    grid = plan(fake)
    with TileReader(fake.slide(), grid) as reader:
        assert reader._direct is not None
        most = 0
        for start in range(0, len(grid), 5):
            reader.read(slice(start, start + 5))
            most = max(most, reader._direct[1].n_kept)
        columns = fake.shape[1]
        assert columns <= most <= 2 * columns + 8
        reader.close()
        assert reader._direct[1].n_kept == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_is_bounded_by_bytes(threads: int) -> None:
    fake = Fake(640, 640)
    grid = plan(fake)
    rows = np.random.default_rng(1).permutation(len(grid))
    grid = replace(grid, coords_l0=grid.coords_l0[rows])
    limit = 40
    with TileReader(fake.slide(), grid, max_bytes=limit * 32 * 32 * 3) as reader:
        assert reader._direct is not None
        tiles = read_all(reader, grid, threads=threads, unit=4)
        assert reader._direct[1].n_kept <= limit
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))
    assert max(fake.decoded.values()) > 1
    assert reader.stats.jpeg_decoded == fake.decoded.total()


def test_large_tiles_are_read_in_smaller_units() -> None:
    fake = Fake(640, 640)
    grid = plan(fake, mpp=2.0)
    region_bytes = (28 * 4) ** 2 * 3
    for max_bytes, fetches in ((0, 12), (8 * 4 * region_bytes, 3), (2**29, 1)):
        with TileReader(fake.slide(), grid, max_bytes=max_bytes) as reader:
            fake.fetches = 0
            tiles = reader.read(np.arange(12))
        assert fake.fetches == fetches
        assert np.array_equal(tiles, expected(fake, grid, range(12)))


@pytest.mark.parametrize("how", ["broken", "cut_off"])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("spec", [{}, {"tile_px": 32}, {"mpp": 1.0}], ids=["unaligned", "aligned", "resampled"])
def test_a_damaged_tile_fails_exactly_the_tiles_that_need_it(spec: dict[str, Any], threads: int, how: str) -> None:
    fake = Fake(333, 270)
    fake.delay_s = 0.0005
    grid = plan(fake, **spec)
    bad = 14
    getattr(fake, how).add(bad)
    failed = {}
    with TileReader(fake.slide(), grid) as reader, ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(reader.read, slice(row, row + 1)) for row in range(len(grid))]
        for row, future in enumerate(done):
            error = future.exception(timeout=60)
            if error is None:
                assert np.array_equal(future.result(), expected(fake, grid, [row]))
            else:
                failed[row] = error
    needing = {
        row for row in range(len(grid)) if bad in touched(fake, replace(grid, coords_l0=grid.coords_l0[row : row + 1]),
                                                          margin=0.0 if "mpp" not in spec else 4.0)
    }  # fmt: skip
    assert set(failed) == needing
    assert failed
    for row, error in failed.items():
        x, y = grid.coords_l0[row].tolist()
        assert isinstance(error, SlideReadError)
        assert error.message.startswith(f"fake: region x={x} y={y} of ")
        assert "fake.svs" in error.message
        assert error.hint == "copy it again"


def test_a_unit_with_a_damaged_tile_names_the_first_tile_that_needs_it() -> None:
    fake = Fake(333, 270)
    grid = plan(fake)
    fake.broken = {3}
    first = min(row for row in range(len(grid)) if 3 in touched(fake, replace(grid, coords_l0=grid.coords_l0[[row]])))
    x, y = grid.coords_l0[first].tolist()
    with pytest.raises(SlideReadError, match=f"x={x} y={y} of 28 x 28 level-0 px cannot be read: .*tile 3 is no JPEG"):
        read_tiles(fake.slide(), grid, slice(0, 11))


def test_a_tile_that_failed_is_tried_again() -> None:
    fake = Fake(333, 270)
    grid = plan(fake)
    fake.broken = {0}
    with TileReader(fake.slide(), grid) as reader:
        with pytest.raises(SlideReadError):
            reader.read(slice(0, 4))
        fake.broken = set()
        assert np.array_equal(reader.read(slice(None)), expected(fake, grid, range(len(grid))))


def test_whoever_waits_for_a_thread_that_breaks_down_gets_its_error() -> None:
    fake = Fake(64, 64)
    grid = plan(fake, tile_px=60, overlap_px=59)
    fake.broken, fake.error, fake.delay_s = {0}, MemoryError("no room"), 0.05
    with TileReader(fake.slide(), grid) as reader, ThreadPoolExecutor(4) as pool:
        done = [pool.submit(reader.read, slice(row, row + 1)) for row in range(4)]
        errors = [future.exception(timeout=60) for future in done]
        assert all(isinstance(error, MemoryError) for error in errors)
        assert fake.decoded[0] < 4, "some thread waited"
        fake.broken = set()
        assert np.array_equal(reader.read(slice(None)), expected(fake, grid, range(len(grid))))


def test_threads_that_need_the_same_tile_wait_for_one_decode() -> None:
    fake = Fake(64, 64, (64, 64))
    grid = plan(fake, tile_px=16)
    fake.delay_s = 0.05
    with TileReader(fake.slide(), grid) as reader:
        tiles = read_all(reader, grid, threads=8, unit=1)
    assert fake.decoded == {0: 1}
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))


def test_missing_tiles_are_read_as_regions_by_a_handle_a_thread() -> None:
    fake = Fake(333, 270)
    fake.present[2, 3:5] = False
    grid = plan(fake)
    slide = fake.slide()
    with TileReader(slide, grid) as reader:
        tiles = read_all(reader, grid, threads=3, unit=2)
        stats = reader.stats
    regions, opened = fake.regions, fake.opened
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))
    assert regions == stats.fallback_tiles == 3 * 2
    assert stats.tiles_read == len(grid)
    assert stats.fallback_s > 0
    assert 1 <= opened <= 3
    assert fake.closed == opened - 1, "the caller's slide stays open"


def test_slides_without_tiles_are_read_as_regions(waves: Callable[[int, int], Pixels]) -> None:
    slide = open_array(waves(300, 200), mpp=0.5)
    grid = plan_tiles(slide.info, TileSpec(tile_px=50, mpp=0.7))
    with TileReader(slide, grid) as reader:
        tiles = reader.read(slice(None))
        assert reader.stats.fallback_tiles == reader.stats.tiles_read == len(grid)
        assert reader.stats.jpeg_decoded == 0
    for (x, y), tile in zip(grid.coords_l0.tolist(), tiles, strict=True):
        assert np.array_equal(tile, slide.read(x, y, grid.footprint_l0, 50, grid.read_level))


def test_levels_with_fewer_tiles_than_pixels_are_read_as_regions() -> None:
    fake = Fake(333, 270)
    fake.shape = (fake.shape[0], fake.shape[1] - 2)  # the right border has none
    fake.present = np.ones(fake.shape, bool)
    grid = plan(fake)
    with TileReader(fake.slide(), grid) as reader:
        tiles = reader.read(slice(None))
        assert 0 < reader.stats.fallback_tiles < len(grid)
    numbers = np.unique(np.array(list(fake.decoded)))
    assert numbers.max() < fake.present.size
    right = np.flatnonzero(grid.coords_l0[:, 0] + 28 > fake.shape[1] * 32)
    assert np.array_equal(tiles[right], expected(fake, grid, right))


def test_tiles_beyond_the_border_are_background() -> None:
    fake = Fake(100, 100)
    grid = plan(fake, tile_px=32, edge="pad")
    grid = replace(grid, coords_l0=np.array([[-40, -40], [200, 10], [90, 90], [-10, 50]]), tissue_fraction=np.ones(4))
    tiles = read_tiles(fake.slide(), grid, slice(None))
    assert (tiles[:2] == BACKGROUND).all()
    assert (tiles[2, 10:, :] == BACKGROUND).all()
    assert np.array_equal(tiles, expected(fake, grid, range(4)))


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (3, 28, 28, 4), (3, 27, 28, 3)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    fake = Fake(100, 100)
    with TileReader(fake.slide(), plan(fake)) as reader:
        with pytest.raises(UsageError, match="cannot be written"):
            reader.read(slice(0, 3), out=np.zeros(shape, np.uint8))
        with pytest.raises(UsageError, match="cannot be written"):
            reader.read(slice(0, 3), out=np.zeros((3, 28, 28, 3), np.float32))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="cannot be written"):
            reader.read(slice(0, 3), out=np.zeros((3, 28, 28, 6), np.uint8)[..., ::2])


def test_an_empty_grid_opens_nothing() -> None:
    fake = Fake(100, 100)
    grid = plan(fake)
    empty = replace(grid, coords_l0=grid.coords_l0[:0], tissue_fraction=grid.tissue_fraction[:0])
    with TileReader(fake.slide(), empty) as reader:
        assert reader.read(slice(None)).shape == (0, 28, 28, 3)
    assert fake.opened == 0


def test_tiles_too_large_to_be_held_at_once_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histotl.wsi.slide._BLOCK_PX", 5_000)
    fake = Fake(400, 400)
    grid = plan(fake, tile_px=28, mpp=2.0)
    with TileReader(fake.slide(), grid) as reader:
        tiles = reader.read(slice(None))
        assert reader.stats.fallback_tiles == len(grid)
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))


@pytest.mark.parametrize("spec", [{}, {"tile_px": 256}, {"mpp": 1.0}, {"mpp": 0.501}, {"tile_px": 300, "edge": "pad"}])
@pytest.mark.parametrize("vendor", ["generic-tiff", "aperio"])
def test_tiles_of_real_files(
    tmp_path: Path, waves: Callable[[int, int], Pixels], spec: dict[str, Any], vendor: Any
) -> None:
    path = write_pyramid(tmp_path / "a.svs", waves(1100, 900), mpp=0.5, levels=(1, 4), vendor=vendor)
    with open_slide(path) as slide, open_slide(path) as other:
        grid = plan_tiles(slide.info, TileSpec(**{"tile_px": 224, "mpp": 0.5} | spec))
        with TileReader(slide, grid) as reader:
            tiles = read_all(reader, grid, threads=2, unit=2)
            stats = reader.stats
        for (x, y), tile in zip(grid.coords_l0.tolist(), tiles, strict=True):
            assert np.array_equal(tile, other.read(x, y, grid.footprint_l0, grid.spec.tile_px, grid.read_level))
        assert slide.tiled(grid.read_level) is not None
        assert stats.fallback_tiles == 0
        assert 0 < stats.jpeg_decoded <= 5 * 4


# --- decoding in batches ---------------------------------------------------------------------------------------------


class FakeJpeg(Fake):
    """A fake whose tiles may be had as files."""

    def streams(self, data: Sequence[bytes]) -> list[bytearray | None]:
        return [None if int(item) in self.cut_off else bytearray(item) for item in data]


class Together:
    """A batch decoder of a fake's tiles that counts them, and refuses some."""

    name = "together"

    def __init__(self, fake: FakeJpeg, refused: Iterable[int] = ()) -> None:
        self.fake, self.refused = fake, set(refused)
        self.asked: Counter[int] = Counter()
        self.calls = 0
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def decode(self, streams: Sequence[bytearray], outs: Sequence[Pixels]) -> list[bool]:
        assert len(streams) == len(outs) > 0
        time.sleep(self.fake.delay_s)
        tiles = [int(stream) for stream in streams]
        with self._lock:
            self.calls += 1
            self.asked.update(tiles)
        if self.error is not None:
            raise self.error
        width, height = self.fake.tile_size
        for tile, out in zip(tiles, outs, strict=True):
            assert out.flags.c_contiguous
            row, column = divmod(tile, self.fake.shape[1])
            out[:] = self.fake.pixels[row * height :][:height, column * width :][:, :width]
            if tile in self.refused:
                out[:] = 77
        return [tile not in self.refused for tile in tiles]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("spec", GRIDS.values(), ids=GRIDS.keys())
def test_a_batch_decoder_gets_every_compressed_tile_once(spec: dict[str, Any], threads: int) -> None:
    fake = FakeJpeg(333, 270)
    grid = plan(fake, **spec)
    decoder = Together(fake)
    with TileReader(fake.slide(), grid, decoder=decoder) as reader:
        tiles = read_all(reader, grid, threads=threads, unit=5)
        assert reader.decoder == "together"
        assert reader.stats.jpeg_decoded == len(decoder.asked)
    assert set(decoder.asked.values()) == {1}
    assert decoder.calls <= -(-len(grid) // 5), "the tiles of one read go together"
    assert not fake.decoded
    assert fake.fetched == decoder.asked
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))


@pytest.mark.parametrize("spec", [{}, {"tile_px": 32}], ids=["unaligned", "aligned"])
def test_what_a_batch_decoder_refuses_the_level_decodes(spec: dict[str, Any]) -> None:
    fake = FakeJpeg(333, 270)
    grid = plan(fake, **spec)
    decoder = Together(fake, refused=range(0, 90, 3))
    with TileReader(fake.slide(), grid, decoder=decoder) as reader:
        tiles = read_all(reader, grid, threads=3, unit=5)
        assert reader.stats.jpeg_decoded == len(decoder.asked)
    assert set(fake.decoded) == decoder.refused & set(decoder.asked)
    assert set(fake.decoded.values()) == {1}
    assert np.array_equal(tiles, expected(fake, grid, range(len(grid))))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("how", ["broken", "cut_off"])
@pytest.mark.parametrize("spec", [{}, {"tile_px": 32}], ids=["unaligned", "aligned"])
def test_a_damaged_tile_in_a_batch_fails_as_without_one(spec: dict[str, Any], how: str, threads: int) -> None:
    errors = []
    for batched in (False, True):
        fake = FakeJpeg(333, 270)
        grid = plan(fake, **spec)
        getattr(fake, how).add(14)
        decoder = Together(fake, refused={14}) if batched else None
        with TileReader(fake.slide(), grid, decoder=decoder) as reader, ThreadPoolExecutor(threads) as pool:
            done = [pool.submit(reader.read, slice(row, row + 3)) for row in range(0, len(grid), 3)]
            found = [future.exception(timeout=60) for future in done]
        errors.append([str(error) for error in found])
        assert any(found)
        for number, future in enumerate(done):
            if found[number] is None:
                rows = range(3 * number, min(3 * number + 3, len(grid)))
                assert np.array_equal(future.result(), expected(fake, grid, rows))
    assert errors[0] == errors[1]


def test_a_batch_decoder_that_breaks_down_leaves_nobody_waiting() -> None:
    fake = FakeJpeg(64, 64)
    fake.delay_s = 0.05
    grid = plan(fake, tile_px=60, overlap_px=59)
    decoder = Together(fake)
    decoder.error = MemoryError("no room")
    with TileReader(fake.slide(), grid, decoder=decoder) as reader, ThreadPoolExecutor(4) as pool:
        done = [pool.submit(reader.read, slice(row, row + 1)) for row in range(4)]
        assert all(isinstance(future.exception(timeout=60), MemoryError) for future in done)
        decoder.error = None
        assert np.array_equal(reader.read(slice(None)), expected(fake, grid, range(len(grid))))


def test_memory_with_a_batch_decoder_is_one_band_too() -> None:
    fake = FakeJpeg(640, 640)
    grid = plan(fake)
    with TileReader(fake.slide(), grid, decoder=Together(fake, refused=range(0, 400, 2))) as reader:
        assert reader._direct is not None
        most = 0
        for start in range(0, len(grid), 5):
            reader.read(slice(start, start + 5))
            most = max(most, reader._direct[1].n_kept)
        assert most <= 3 * fake.shape[1] + 8


def test_a_level_without_files_has_no_use_for_a_batch_decoder() -> None:
    fake = Fake(100, 100)
    grid = plan(fake)
    decoder = Together(FakeJpeg(100, 100))
    with TileReader(fake.slide(), grid, decoder=decoder) as reader:
        assert reader.decoder == "cpu"
        assert np.array_equal(reader.read(slice(None)), expected(fake, grid, range(len(grid))))
    assert not decoder.asked


YCBCR = {
    "4:2:0": (jpeg_ycbcr("420"), {}),
    "4:2:2": (jpeg_ycbcr("422"), {"chroma": "422"}),
    "4:4:4": (jpeg_ycbcr("444"), {"chroma": "444"}),
    "tables of each tile": (jpeg_own_tables, {}),
}


@pytest.mark.parametrize(("encode", "options"), YCBCR.values(), ids=YCBCR.keys())
def test_tiles_as_files_have_the_same_pixels(tmp_path: Path, encode: Encode, options: dict[str, Any]) -> None:
    path = write_tiled(tmp_path / "a.svs", [content(512, 512)], encode, tile=(128, 128), **options)
    with open_slide(path, mpp=0.5) as slide:
        level = slide.tiled(0)
        assert level is not None
        data = level.fetch(range(16))
        for tile, (item, stream) in enumerate(zip(data, level.streams(data), strict=True)):  # type: ignore[attr-defined]
            assert np.array_equal(simplejpeg.decode_jpeg(stream), level.decode(tile, item))


def test_tables_of_the_page_are_in_the_file_of_a_tile(tmp_path: Path) -> None:
    image = content(256, 256)
    tables = tables_of(jpeg_ycbcr()(image[:128, :128]))
    path = write_tiled(
        tmp_path / "a.svs", [image], lambda tile: without(jpeg_ycbcr()(tile), 0xDB, 0xC4), tile=(128, 128),
        tables=tables,
    )  # fmt: skip
    with open_slide(path, mpp=0.5) as slide:
        level = slide.tiled(0)
        assert level is not None
        data = level.fetch([1])
        (stream,) = level.streams(data)  # type: ignore[attr-defined]
        assert np.array_equal(simplejpeg.decode_jpeg(stream), level.decode(1, data[0]))


OTHERS = {
    "RGB": (jpeg_rgb, {"photometric": "rgb"}),
    "JPEG 2000": (
        lambda tile: bytes(imagecodecs.jpeg2k_encode(tile, level=40, codecformat="j2k")),
        {"photometric": "rgb", "compression": 33005},
    ),
}


@pytest.mark.parametrize(("encode", "options"), OTHERS.values(), ids=OTHERS.keys())
def test_other_tiles_are_no_files(tmp_path: Path, encode: Encode, options: dict[str, Any]) -> None:
    path = write_tiled(tmp_path / "a.svs", [content(256, 256)], encode, tile=(128, 128), **options)
    with open_slide(path, mpp=0.5) as slide:
        level = slide.tiled(0)
        assert level is not None
        assert level.streams(level.fetch([0])) is None  # type: ignore[attr-defined]


def test_levels_shrunk_while_decoding_are_no_files(tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.svs", [content(512, 512)], jpeg_ycbcr(), tile=(128, 128))
    with open_slide(path, mpp=0.5, reader="openslide(decode='dct')") as slide:
        levels = [slide.tiled(number) for number in range(len(slide.info.levels))]
        assert len(levels) > 1
        assert [level.streams([]) is None for level in levels] == [False] + [True] * (len(levels) - 1)  # type: ignore[union-attr]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "no end": lambda data: data[:-2],
    "a block of zeros": lambda data: data[:1200] + bytes(1024) + data[2224:],
    "a marker in it": lambda data: data[:1500] + b"\xff\xc4" + data[1502:],
    "an early end": lambda data: data[:1500] + b"\xff\xd9" + data[1502:],
    "more after the end": lambda data: data + b"more",
    "another size": lambda data: jpeg_ycbcr()(content(64, 64)),
    "no JPEG": lambda data: b"\1" * len(data),
    "nothing": lambda data: b"",
    "progressive": lambda data: jpeg_progressive(content(128, 128)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_looks_damaged_is_no_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_tiled(tmp_path / "a.svs", [content(256, 256, "noise")], jpeg_ycbcr(), tile=(128, 128))
    with open_slide(path, mpp=0.5) as slide:
        level = slide.tiled(0)
        assert level is not None
        data = level.fetch(range(4))
        assert len(data[2]) > 3000
        data[2] = damage(data[2])
        streams = level.streams(data)  # type: ignore[attr-defined]
        assert [stream is None for stream in streams] == [False, False, True, False]
        padded = level.streams([data[0] + b"\0"])[0]  # type: ignore[attr-defined]
        assert padded == streams[0], "zeros after the end fill up a word"
