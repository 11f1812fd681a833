"""Direct reading: few large reads, and damage that is told and never painted over."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pytest
import simplejpeg
import tifffile
from PIL import Image

from histotl.core.errors import SlideReadError, UsageError
from histotl.wsi.readers import _ifd
from histotl.wsi.readers import openslide as openslide_module
from histotl.wsi.readers.base import TiledLevel
from histotl.wsi.readers.image import ImageReader
from histotl.wsi.readers.openslide import OpenSlideBackend
from histotl.wsi.slide import open_slide
from tests.wsi.direct_files import content, jpeg_rgb, jpeg_ycbcr, overwrite, tile_bytes, write_tiled

Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """8 x 6 tiles of 128 pixels."""
    return write_tiled(tmp_path / "a.svs", [content(1024, 768)], jpeg_ycbcr(), tile=(128, 128))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(bytes, offset) of every positioned read."""
    seen: list[tuple[int, int]] = []
    original = os.pread

    def pread(handle: int, size: int, offset: int) -> bytes:
        seen.append((size, offset))
        return original(handle, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    return seen


def level_of(backend: OpenSlideBackend, level: int = 0) -> TiledLevel:
    found = backend.tiled(level)
    assert found is not None
    return found


# --- fetching --------------------------------------------------------------------------------------------------------


def test_neighbours_share_a_read(slide: Path, reads: list[tuple[int, int]]) -> None:
    backend = OpenSlideBackend(slide)
    tiled = level_of(backend)
    data = slide.read_bytes()
    expected = [data[start : start + size] for start, size in (tile_bytes(slide, 0, tile) for tile in range(48))]
    for wanted in (list(range(48)), [5, 3, 4], [0, 0, 7], list(range(0, 48, 2))):
        reads.clear()
        assert tiled.fetch(wanted) == [expected[tile] for tile in wanted]
        assert len(reads) == 1
    reads.clear()
    assert tiled.fetch([17]) == [expected[17]]
    assert reads == [(len(expected[17]), data.index(expected[17]))], "one tile is read to the byte"
    assert tiled.fetch([]) == []
    backend.close()


def test_distant_tiles_are_read_apart(
    slide: Path, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histotl.wsi.readers._files.GAP_BYTES", 100)
    backend = OpenSlideBackend(slide)
    level_of(backend).fetch([0, 1, 40, 41, 20])
    assert len(reads) == 3
    monkeypatch.setattr("histotl.wsi.readers._files._RUN_BYTES", 5000)
    reads.clear()
    level_of(backend).fetch(range(48))
    assert len(reads) > 10
    sizes = {tile_bytes(slide, 0, tile)[1] for tile in range(48)}
    assert all(size <= 5000 or size in sizes for size, _ in reads)
    backend.close()


def test_reads_that_stop_early_are_continued(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OpenSlideBackend(slide)
    whole = level_of(backend).fetch(range(48))
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: original(handle, min(size, 1000), offset))
    assert level_of(backend).fetch(range(48)) == whole
    backend.close()


def test_a_region_reads_once_and_decodes_every_tile_once(
    slide: Path, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kw: decoded.append(1) or original(*args, **kw))
    backend = OpenSlideBackend(slide)
    backend.read_region(100, 100, 0, 824, 568)
    assert (len(decoded), len(reads)) == (48, 1)
    backend.read_region(300, 300, 0, 100, 100)
    assert (len(decoded), len(reads)) == (48, 1), "small rectangles share tiles with those read just before"
    backend.close()


def test_tiles_are_remembered_up_to_a_limit(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr("histotl.wsi.readers._tiled._KEPT_BYTES", 4 * 128 * 128 * 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kw: decoded.append(1) or original(*args, **kw))
    backend = OpenSlideBackend(slide)
    whole = backend.read_region(0, 0, 0, 1024, 768)
    assert len(decoded) == 48
    for x in range(0, 900, 50):
        for y in (0, 100, 250):
            assert np.array_equal(backend.read_region(x, y, 0, 120, 90), whole[y : y + 90, x : x + 120])
    del decoded[:]
    backend.read_region(10, 10, 0, 200, 200)
    backend.read_region(20, 20, 0, 200, 200)
    assert len(decoded) == 4
    assert np.array_equal(backend.read_region(0, 0, 0, 1024, 700), whole[:700])
    backend.close()


# --- damage ----------------------------------------------------------------------------------------------------------


def openslide_raises(path: Path, x: int, y: int, side: int) -> bool:
    with openslide.OpenSlide(path) as slide:
        try:
            slide.read_region((x, y), 0, (side, side))
        except openslide.OpenSlideError:
            return True
        return False


def assert_only_this_tile_fails(path: Path, tile: int) -> None:
    """The tile's own error, from its bytes and from regions over it; its neighbours are whole."""
    backend = OpenSlideBackend(path)
    tiled = level_of(backend)
    row, column = divmod(tile, 8)
    with pytest.raises(SlideReadError, match=rf"^{path.name}: tile {tile} \(column {column}, row {row}, x=") as caught:
        tiled.decode(tile, tiled.fetch([tile])[0])
    assert caught.value.hint == "the file is damaged: copy or export it again"
    where = rf"region x={column * 128 + 5} y={row * 128 + 5} of level 0 cannot be decoded: tile {tile}"
    for _ in range(2):
        with pytest.raises(SlideReadError, match=where) as caught:
            backend.read_region(column * 128 + 5, row * 128 + 5, 0, 20, 20)
        assert "\n" not in caught.value.message
    beside = backend.read_region((column - 1) * 128, row * 128, 0, 128, 128)
    with openslide.OpenSlide(path) as slide:
        assert np.array_equal(
            beside, np.asarray(slide.read_region(((column - 1) * 128, row * 128), 0, (128, 128)).convert("RGB"))
        )
    backend.close()


DAMAGE = {
    "nothing but zeros": lambda data: bytes(len(data)),
    "no end marker": lambda data: data[:-2] + b"\0\0",
    "end marker in the middle": lambda data: data[: len(data) // 2] + b"\xff\xd9" + data[len(data) // 2 + 2 :],
    "restart marker in the middle": lambda data: data[: len(data) // 2] + b"\xff\xd3" + data[len(data) // 2 + 2 :],
    "header cut off": lambda data: data[:100] + bytes(len(data) - 100),
    "another size": lambda data: data.replace(b"\x08\x00\x80\x00\x80\x03", b"\x08\x00\x80\x00\x70\x03"),
    "one component": lambda data: data.replace(b"\x08\x00\x80\x00\x80\x03", b"\x08\x00\x80\x00\x80\x01"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tiles(slide: Path, damage: str) -> None:
    """Each of these makes OpenSlide raise as well."""
    tile = 21
    start, size = tile_bytes(slide, 0, tile)
    data = slide.read_bytes()[start : start + size]
    changed = DAMAGE[damage](data)
    assert changed != data
    overwrite(slide, start, changed)
    assert openslide_raises(slide, 5 * 128 + 5, 2 * 128 + 5, 20)
    assert_only_this_tile_fails(slide, tile)


def test_noise_in_the_pixels_is_noticed_where_the_stream_betrays_it(slide: Path) -> None:
    """Random bytes in entropy-coded data are told by left-over bytes, and OpenSlide's pixels are given otherwise."""
    tile, rng, told = 21, np.random.default_rng(3), 0
    start, size = tile_bytes(slide, 0, tile)
    data = slide.read_bytes()[start : start + size]
    for _ in range(30):
        at = int(rng.integers(size // 3, size - 40))
        overwrite(slide, start, data[:at] + rng.integers(0, 255, 20, np.uint8).tobytes() + data[at + 20 :])
        backend = OpenSlideBackend(slide)
        try:
            read = backend.read_region(5 * 128, 2 * 128, 0, 128, 128)
        except SlideReadError:
            told += 1
        else:
            with openslide.OpenSlide(slide) as raw:
                assert np.array_equal(read, np.asarray(raw.read_region((640, 256), 0, (128, 128)).convert("RGB")))
        backend.close()
    assert told >= 10


def test_fill_bytes_before_the_end_marker_are_no_damage(tmp_path: Path) -> None:
    """Some encoders fill the stream up to a whole number of words; libjpeg only remarks on it."""
    plain = jpeg_ycbcr()

    def padded(tile: Pixels) -> bytes:
        data = plain(tile)
        return data[:-2] + bytes(7) + data[-2:]

    path = write_tiled(tmp_path / "a.svs", [content(300, 200)], padded)
    with open_slide(path) as slide, openslide.OpenSlide(path) as raw:
        whole = np.asarray(raw.read_region((0, 0), 0, raw.dimensions).convert("RGB"))
        assert np.array_equal(slide.read(0, 0, (200, 200), 200), whole[:200, :200])


@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_zeros_up_to_the_end_marker_are_lost_pixels(slide: Path, kept: float) -> None:
    start, size = tile_bytes(slide, 0, 21)
    overwrite(slide, start + int(size * kept), bytes(size - int(size * kept) - 2))
    assert_only_this_tile_fails(slide, 21)


def test_file_that_ends_inside_a_tile(tmp_path: Path) -> None:
    image = content(600, 500)
    path = write_tiled(tmp_path / "a.tif", [image, image[::4, ::4]], jpeg_ycbcr(), vendor="generic-tiff")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages[0]
        page.tags["TileOffsets"].overwrite((*page.dataoffsets[:5], path.stat().st_size - 100))
    assert openslide_raises(path, 512, 256, 50)
    backend = OpenSlideBackend(path)
    tiled = level_of(backend)
    with pytest.raises(SlideReadError, match=r"a.tif: tile 5 \(column 2, row 1, .* the file ends inside it"):
        tiled.fetch(range(6))
    assert len(tiled.fetch(range(5))) == 5
    with pytest.raises(SlideReadError, match="region x=500 y=300"):
        backend.read_region(500, 300, 0, 100, 100)
    backend.read_region(0, 0, 0, 600, 256)
    backend.close()


@pytest.mark.parametrize("compression", ["lzw", "zlib", None])
def test_damaged_lossless_tiles(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, content(256, 256), tile=(128, 128), compression=compression, photometric="rgb", metadata=None
    )
    backend = OpenSlideBackend(path)
    tiled = level_of(backend)
    data = tiled.fetch([1])[0]
    tiled.decode(1, data)
    with pytest.raises(SlideReadError, match="tile 1 "):
        tiled.decode(1, data[: len(data) // 2])
    backend.close()


def test_an_array_of_another_shape_is_refused(slide: Path) -> None:
    backend = OpenSlideBackend(slide)
    tiled = level_of(backend)
    data = tiled.fetch([0])[0]
    for wrong in (np.empty((128, 127, 3), np.uint8), np.empty((128, 256, 3), np.uint8)[:, ::2]):
        with pytest.raises(UsageError, match="out is "):
            tiled.decode(0, data, wrong)
    backend.close()


# --- closing, copies, threads ----------------------------------------------------------------------------------------


def handles(path: Path) -> int:
    """How often this process has the file open."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files cannot be counted on this system")
    return sum(link.is_symlink() and link.readlink() == path.resolve() for link in folder.iterdir())


def test_closed_levels_read_nothing_and_leave_nothing_open(slide: Path) -> None:
    backend = OpenSlideBackend(slide)
    tiled = level_of(backend)
    before = backend.read_region(0, 0, 0, 300, 300)
    backend.close()
    backend.close()
    assert handles(slide) == 0
    with pytest.raises(SlideReadError, match="the slide is closed"):
        tiled.fetch([0])
    assert np.array_equal(backend.read_region(0, 0, 0, 300, 300), before), "a later read opens it again"
    assert handles(slide) >= 1
    del backend, tiled
    gc.collect()
    assert handles(slide) == 0


def test_the_bytes_of_another_file_are_not_taken(tmp_path: Path) -> None:
    # Uncompressed files of one size are laid out alike: nothing else would betray the exchange.
    image = content(512, 512)
    path, other = tmp_path / "a.tif", tmp_path / "b.tif"
    for file, pixels in ((path, image), (other, 255 - image)):
        tifffile.imwrite(file, pixels, tile=(128, 128), photometric="rgb", metadata=None)
    os.utime(other, ns=(0, 0))
    assert other.stat().st_size == path.stat().st_size
    backend = OpenSlideBackend(path)
    level = level_of(backend)
    before = level.fetch([3])
    other.replace(path)
    assert level.fetch([3]) == before, "this thread's handle is of the first file"
    found: list[SlideReadError] = []

    def read_in_another_thread() -> None:
        with pytest.raises(SlideReadError) as caught:
            level.fetch([3])
        found.append(caught.value)

    thread = threading.Thread(target=read_in_another_thread)
    thread.start()
    thread.join()
    assert found[0].message == "a.tif: the file has changed since it was opened"
    backend.close()
    with pytest.raises(SlideReadError, match=r"^a\.tif: the slide is closed"):
        level.fetch([3])


def test_several_threads_read_one_level(slide: Path) -> None:
    backend = OpenSlideBackend(slide)
    tiled = level_of(backend)
    expected = [tiled.decode(tile, data) for tile, data in enumerate(tiled.fetch(range(48)))]
    faults: list[str] = []

    def work(seed: int) -> None:
        out = np.empty((128, 128, 3), np.uint8)
        for tile in np.random.default_rng(seed).permutation(48).tolist() * 3:
            if not np.array_equal(tiled.decode(tile, tiled.fetch([tile])[0], out), expected[tile]):
                faults.append(f"thread {seed}, tile {tile}")  # noqa: PERF401 - one list for all threads

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    backend.close()
    assert handles(slide) == 0


def test_copies_share_what_was_parsed(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for module, function in ((openslide_module, "_open"), (openslide_module, "aperio_slide")):
        original = getattr(module, function)
        monkeypatch.setattr(
            module, function, lambda path, name=function, call=original: opened.append(name) or call(path)
        )
    first = open_slide(slide)
    assert opened == ["aperio_slide"]
    whole = first.read(0, 0, (500, 500), 500)
    for other in (copy.copy(first), pickle.loads(pickle.dumps(first))):
        assert np.array_equal(other.read(0, 0, (500, 500), 500), whole)
        other.close()
    assert opened == ["aperio_slide"]
    stat = slide.stat()
    os.utime(slide, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    open_slide(slide).close()
    assert opened == ["aperio_slide"] * 2, "a changed file is another file"
    first.close()


# --- the TIFF index and the image reader -----------------------------------------------------------------------------


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_the_index_is_tifffiles(tmp_path: Path, byteorder: str, bigtiff: bool) -> None:
    levels = [content(700, 530), content(350, 265)]
    path = write_tiled(tmp_path / "a.tif", levels, jpeg_rgb, photometric="rgb", byteorder=byteorder, bigtiff=bigtiff)
    with tifffile.TiffFile(path) as tif:
        expected = [_ifd.page_of(page) for page in tif.pages if page.is_tiled]
    found = _ifd.tiled_pages(path)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        for name in _ifd.TiffPage.__dataclass_fields__:
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_damaged_directories_are_told(tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.tif", [content(300, 200)], jpeg_ycbcr())
    data = path.read_bytes()
    for broken in (b"", b"II*\0", b"XX*\0" + data[4:], data[:100], data[:4] + b"\xff\xff\xff\x7f" + data[8:]):
        path.write_bytes(broken)
        with pytest.raises(_ifd.TiffFormatError):
            _ifd.tiled_pages(path)
    start = int.from_bytes(data[4:8], "little")
    tags = int.from_bytes(data[start : start + 2], "little")
    link = start + 2 + 12 * tags
    path.write_bytes(data[:link] + data[4:8] + data[link + 4 :])
    with pytest.raises(_ifd.TiffFormatError, match="circle"):
        _ifd.tiled_pages(path)


@pytest.mark.parametrize("kind", ["jpeg", "rgb jpeg", "lzw", "big-endian", "jpeg2000", "palette", "transparent"])
def test_image_reader_gives_tiles_of_the_same_pixels(tmp_path: Path, kind: str) -> None:
    path, image = tmp_path / "a.tif", content(300, 200)
    if kind == "jpeg":
        write_tiled(path, [image], jpeg_ycbcr(), vendor="generic-tiff", tile=(64, 128))
    elif kind == "rgb jpeg":
        write_tiled(path, [image], jpeg_rgb, vendor="generic-tiff", photometric="rgb", tile=(64, 128))
    elif kind == "palette":
        table = np.random.default_rng(0).integers(0, 2**16, (3, 256)).astype(np.uint16)
        tifffile.imwrite(path, image[..., 0], photometric="palette", colormap=table, tile=(128, 64))
    elif kind == "transparent":
        rgba = np.dstack([image, image[..., 0]])
        tifffile.imwrite(path, rgba, photometric="rgb", tile=(128, 64), extrasamples="unassalpha")
    else:
        options = {"compression": {"lzw": "lzw", "jpeg2000": "jpeg2000"}.get(kind)}
        tifffile.imwrite(
            path, image, photometric="rgb", tile=(128, 64), byteorder=">" if kind == "big-endian" else "<", **options
        )
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        expected = page.asarray()
        if kind == "palette":
            expected = (page.colormap >> 8).astype(np.uint8).T[expected]
    if kind == "transparent":
        alpha = expected[..., 3:].astype(float) / 255
        expected = np.round(expected[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    backend = ImageReader().open(path)
    assert backend.decoding(0).startswith("direct: ")
    assert np.array_equal(backend.read_region(0, 0, 0, 300, 200), expected)
    assert np.array_equal(backend.read_region(50, 60, 0, 100, 99), expected[60:159, 50:150])
    tiled = backend.tiled(0)
    assert tiled is not None
    assert (tiled.tile_size, tiled.shape) == ((64, 128), (2, 5))
    out = np.empty((128, 64, 3), np.uint8)
    assert tiled.decode(1, tiled.fetch([1])[0], out) is out
    assert np.array_equal(out, expected[:128, 64:128])
    backend.close()
    with pytest.raises(SlideReadError, match="closed"):
        tiled.fetch([1])


def test_image_reader_says_what_is_not_tiled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", content(300, 200), photometric="rgb")
    Image.fromarray(content(300, 200)).save(tmp_path / "a.png")
    for name, words in (("a.tif", "through tifffile: not tiled"), ("a.png", "through Pillow")):
        backend = ImageReader().open(tmp_path / name)
        assert backend.tiled(0) is None
        assert backend.decoding(0).startswith(words)
        backend.close()
