"""Direct decoding gives the very pixels of OpenSlide, on files with every quirk that can be written here."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import tifffile
from PIL import Image

from histotl.core.errors import SlideOpenError, SlideReadError, UsageError
from histotl.core.registry import create
from histotl.wsi.readers._codecs import ycbcr_to_rgb
from histotl.wsi.readers.openslide import OpenSlideBackend, OpenSlideReader
from histotl.wsi.slide import Slide, open_slide
from tests.wsi.direct_files import (
    content,
    jpeg_own_tables,
    jpeg_progressive,
    jpeg_rgb,
    jpeg_rgb_called_jfif,
    jpeg_ycbcr,
    tables_of,
    without,
    write_ndpi,
    write_philips,
    write_tiled,
)

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 700, 530


def by_openslide(path: Path, level: int) -> Pixels:
    """A whole level as OpenSlide shows it, on white."""
    with openslide.OpenSlide(path) as slide:
        rgba = slide.read_region((0, 0), level, slide.level_dimensions[level])
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def assert_same_pixels(path: Path, *, direct: str = "direct: ", levels: int | None = None) -> None:
    """Whole levels, and rectangles across borders of tiles and of the slide, in every level."""
    rng = np.random.default_rng(0)
    backend = OpenSlideBackend(path)
    for level, size in enumerate(backend.info.levels[:levels]):
        assert backend.decoding(level).startswith(direct), backend.decoding(level)
        whole = by_openslide(path, level)
        assert np.array_equal(backend.read_region(0, 0, level, size.width, size.height), whole)
        tiled = backend.tiled(level)
        assert tiled is not None
        across, down = tiled.tile_size
        assert tiled.shape == (-(-size.height // down), -(-size.width // across))
        for _ in range(12):
            left, top = int(rng.integers(size.width)), int(rng.integers(size.height))
            width = int(rng.integers(1, size.width - left + 1))
            height = int(rng.integers(1, size.height - top + 1))
            scale = backend.info.width / size.width, backend.info.height / size.height
            corner = round(left * scale[0]), round(top * scale[1])
            region = backend.read_region(*corner, level, width, height)
            assert np.array_equal(region, whole[top : top + height, left : left + width])
    backend.close()


JPEGS: dict[str, dict[str, Any]] = {
    "4:2:0": {"encode": jpeg_ycbcr("420")},
    "4:2:2": {"encode": jpeg_ycbcr("422"), "chroma": "422"},
    "4:4:4": {"encode": jpeg_ycbcr("444"), "chroma": "444"},
    "rgb": {"encode": jpeg_rgb, "photometric": "rgb"},
    "rgb called jfif": {"encode": jpeg_rgb_called_jfif, "photometric": "rgb"},
    "rgb without marker": {"encode": lambda tile: without(jpeg_rgb(tile), 0xEE), "photometric": "rgb"},
    "ycbcr without marker": {"encode": lambda tile: without(jpeg_ycbcr()(tile), 0xE0)},
    "progressive": {"encode": jpeg_progressive},
    "own huffman tables": {"encode": jpeg_own_tables},
    "shared tables": {
        "encode": lambda tile: without(jpeg_ycbcr()(tile), 0xDB, 0xC4),
        "tables": tables_of(jpeg_ycbcr()(content(256, 256))),
    },
    "shared tables, rgb": {
        "encode": lambda tile: without(jpeg_rgb(tile), 0xDB, 0xC4, 0xEE),
        "tables": tables_of(jpeg_rgb(content(256, 256))),
        "photometric": "rgb",
    },
}


@pytest.mark.parametrize("vendor", ["aperio", "generic-tiff"])
@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_of_all_kinds(tmp_path: Path, kind: str, vendor: str) -> None:
    image = content(WIDTH, HEIGHT)
    path = write_tiled(tmp_path / "a.tif", [image, image[::2, ::2]], vendor=vendor, **JPEGS[kind])
    assert_same_pixels(path, direct="direct: JPEG 256×256, " + ("RGB" if "rgb" in kind else "YCbCr"))


@pytest.mark.parametrize("kind", ["smooth", "noise"])
@pytest.mark.parametrize("tile", [(128, 128), (240, 240), (256, 256), (512, 512), (256, 128), (64, 1024)])
def test_tile_sizes(tmp_path: Path, tile: tuple[int, int], kind: str) -> None:
    assert_same_pixels(write_tiled(tmp_path / "a.svs", [content(WIDTH, HEIGHT, kind)], jpeg_ycbcr(), tile=tile))


@pytest.mark.parametrize("layout", [{}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}], ids=str)
def test_layouts_of_the_file(tmp_path: Path, layout: dict[str, Any]) -> None:
    image = content(WIDTH, HEIGHT)
    assert_same_pixels(write_tiled(tmp_path / "a.svs", [image, image[::4, ::4]], jpeg_ycbcr(), **layout))


@pytest.mark.parametrize("factor", [2.0, 3.9998, 4.0002, 8.001, 2.83])
def test_fractional_levels_of_odd_size(tmp_path: Path, factor: float) -> None:
    image = content(1231, 907)
    small = content(round(1231 / factor), round(907 / factor))
    assert_same_pixels(write_tiled(tmp_path / "a.svs", [image, small], jpeg_ycbcr()))


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        ("lzw", False),
        ("lzw", True),
        ("zlib", False),
        ("zlib", True),
        ("packbits", False),
        ("zstd", False),
        (None, False),
    ],
)
def test_lossless_tiles(tmp_path: Path, compression: str | None, predictor: bool) -> None:
    path, image = tmp_path / "a.tif", content(WIDTH, HEIGHT)
    options: dict[str, Any] = {"compression": compression, "predictor": predictor, "metadata": None}
    tifffile.imwrite(path, image, tile=(128, 256), photometric="rgb", **options)
    assert np.array_equal(by_openslide(path, 0), image)
    assert_same_pixels(path)


@pytest.mark.parametrize(
    ("compression", "options"),
    [
        (33005, {"level": 40, "mct": True}),
        (33005, {"level": 0, "reversible": True, "mct": False}),
        (33003, {"level": 40, "mct": False}),
        (33003, {"level": 0, "reversible": True, "mct": False}),
    ],
)
def test_jpeg_2000(tmp_path: Path, compression: int, options: dict[str, Any]) -> None:
    def encode(tile: Pixels) -> bytes:
        return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", **options))

    image = content(WIDTH, HEIGHT)
    path = write_tiled(tmp_path / "a.svs", [image], encode, photometric="rgb", compression=compression)
    assert_same_pixels(path, direct="direct: JPEG 2000 256×256, " + ("RGB" if compression == 33005 else "YCbCr"))


def test_ycbcr_conversion_at_its_ends() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)[None]
    grey[..., 1:] = 128
    assert np.array_equal(ycbcr_to_rgb(grey), np.repeat(grey[..., :1], 3, axis=-1))
    assert ycbcr_to_rgb(np.array([[[255, 0, 255], [0, 255, 0]]], np.uint8)).tolist() == [[[255, 208, 28], [0, 48, 225]]]


@pytest.mark.parametrize("vendor", ["aperio", "generic-tiff"])
def test_missing_tiles_are_shown_as_openslide_shows_them(tmp_path: Path, vendor: str) -> None:
    image = content(1300, 1000)
    path = write_tiled(tmp_path / "a.tif", [image, image[::2, ::2]], jpeg_ycbcr(), vendor=vendor, missing=(0, 9))
    assert_same_pixels(path)
    backend = OpenSlideBackend(path)
    tiled, coarser = backend.tiled(0), backend.tiled(1)
    assert tiled is not None
    assert coarser is not None
    assert np.flatnonzero(~tiled.present).tolist() == [0, 9]
    # Where a tile is missing, OpenSlide distrusts Aperio's coarser levels too.
    assert coarser.present.all() == (vendor == "generic-tiff")
    assert coarser.present[1, 0]
    assert backend.decoding(0).endswith("; 2 missing tiles through OpenSlide")
    with pytest.raises(UsageError, match="has not"):
        tiled.fetch([0, 1])
    backend.close()


@pytest.mark.parametrize("missing", [(), (2, 7)])
def test_philips_cuts_off_what_fills_the_last_tiles(tmp_path: Path, missing: tuple[int, ...]) -> None:
    image = content(9 * 128, 5 * 128)
    levels = [np.ascontiguousarray(image[:: 2**k, :: 2**k]) for k in range(3)]
    path = write_philips(tmp_path / "a.tiff", levels, 128, missing)
    backend = OpenSlideBackend(path)
    assert backend.info.vendor == "philips"
    assert [level.width for level in backend.info.levels] == [1152, 576, 288]
    backend.close()
    assert_same_pixels(path)


@pytest.mark.parametrize("blocks", [4, 8])
@pytest.mark.parametrize("subsampling", [0, 1])
def test_ndpi_stretches_between_restart_markers(tmp_path: Path, subsampling: int, blocks: int) -> None:
    image = content(1024, 512)
    levels = [image, np.ascontiguousarray(image[::2, ::2])]
    path = write_ndpi(tmp_path / "a.ndpi", levels, subsampling, blocks)
    assert_same_pixels(path, levels=2, direct=f"direct: JPEG {8 * blocks * (1 + subsampling)}×8, YCbCr")
    backend = OpenSlideBackend(path)
    assert backend.info.vendor == "hamamatsu"
    assert "no tiled page of 256×128 px" in backend.decoding(2), "OpenSlide makes this level by scaling"
    assert np.array_equal(backend.read_region(0, 0, 2, 256, 128), by_openslide(path, 2))
    backend.close()


def test_ndpi_that_openslide_refuses_is_left_to_openslide(tmp_path: Path) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", [content(1024, 512)], 2, 8)
    backend = OpenSlideBackend(path)
    assert backend.decoding(0) == "through OpenSlide: NDPI with JPEG 4:2:0"
    backend.close()


# --- what is not read directly, with the reason ----------------------------------------------------------------------


def patched(path: Path, tag: int, change: Callable[[bytearray, int], None]) -> Path:
    """Change a tag's entry of the first page of a little-endian classic TIFF."""
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * number
        if struct.unpack_from("<H", data, at)[0] == tag:
            change(data, at)
    path.write_bytes(data)
    return path


def test_reasons(tmp_path: Path) -> None:
    image = content(WIDTH, HEIGHT)
    alpha = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    rgb: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "alpha.tif", alpha, tile=(128, 128), extrasamples="unassalpha", **rgb)
    planar = np.moveaxis(image, 2, 0).copy()
    tifffile.imwrite(tmp_path / "planar.tif", planar, tile=(128, 128), planarconfig="separate", **rgb)
    path = write_tiled(tmp_path / "twice.tif", [image, image], jpeg_ycbcr(), vendor="generic-tiff")
    reasons = {"alpha.tif": "4 samples a pixel", "planar.tif": "planar configuration 2", path.name: "2 tiled pages of"}
    tifffile.imwrite(tmp_path / "turned.tif", image, tile=(128, 128), extratags=[(274, "H", 1, 3, True)], **rgb)
    reasons["turned.tif"] = "orientation 3"
    for name, reason in reasons.items():
        backend = OpenSlideBackend(tmp_path / name)
        assert backend.tiled(0) is None
        assert backend.decoding(0).startswith("through OpenSlide: ")
        assert reason in backend.decoding(0)
        size = backend.info.levels[0]
        assert np.array_equal(backend.read_region(0, 0, 0, size.width, size.height), by_openslide(tmp_path / name, 0))
        backend.close()
        with pytest.raises(SlideOpenError, match=reason) as caught:
            OpenSlideReader(decode="direct").open(tmp_path / name)
        assert "decode='auto'" in caught.value.hint


# --- the choice of path ----------------------------------------------------------------------------------------------


def test_the_path_can_be_forced_and_is_part_of_the_identity(tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.svs", [content(WIDTH, HEIGHT)], jpeg_ycbcr())
    names = {}
    for decode in ("auto", "direct", "openslide", "dct"):
        with open_slide(path, reader=f"openslide(decode={decode!r})") as slide:
            names[decode] = slide.info.reader
            assert (slide.tiled(0) is None) == (decode == "openslide")
            assert np.array_equal(slide.read(10, 20, (300, 300), 300), by_openslide(path, 0)[20:320, 10:310])
            assert slide.decoding(0) == (
                "through OpenSlide: as asked for" if decode == "openslide" else "direct: JPEG 256×256, YCbCr 4:2:0"
            )
    assert names["auto"] == names["direct"] == "openslide"
    for decode in ("openslide", "dct"):
        assert names[decode] == f"openslide(decode={decode!r})"
        assert create("reader", names[decode]) == OpenSlideReader(decode=decode)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="decode='fast'"):
        create("reader", "openslide(decode='fast')")


def test_scaled_levels_stand_where_the_file_has_none(tmp_path: Path) -> None:
    image = content(1000, 777, "smooth")
    small = np.asarray(Image.fromarray(image).resize((250, 194), Image.Resampling.BOX))
    path = write_tiled(tmp_path / "a.svs", [image, small], jpeg_ycbcr(quality=95))
    backend = OpenSlideBackend(path, "dct")
    sizes = [(level.width, level.height, round(level.downsample)) for level in backend.info.levels]
    assert sizes == [(1000, 777, 1), (500, 388, 2), (250, 194, 4), (125, 97, 8), (62, 48, 16), (31, 24, 32)]
    assert "shrunk" not in backend.decoding(2), "the file's own level stays"
    for level, (width, height, factor) in enumerate(sizes):
        read = backend.read_region(0, 0, level, width, height).astype(float)
        if factor in (2, 8):
            fine = image if factor == 2 else small
            part = fine[: height * 2, : width * 2].reshape(height, 2, width, 2, 3).mean((1, 3))
            assert abs(read - part).mean() < 1.5
        tiled = backend.tiled(level)
        assert tiled is not None
        data = tiled.fetch([0])[0]
        tile = tiled.decode(0, data)
        assert tile.shape == (tiled.tile_size[1], tiled.tile_size[0], 3)
        into = np.zeros_like(tile)
        assert tiled.decode(0, data, into) is into
        assert np.array_equal(into, tile)
        assert np.array_equal(tile[: min(20, height), : min(20, width)], read[: min(20, height), : min(20, width)])
    backend.close()
    with open_slide(path, reader="openslide(decode='dct')") as slide:
        half = slide.read(0, 0, (512, 512), 256)
        assert np.array_equal(half, slide.read(0, 0, (512, 512), 256, level=1)), "the engine finds the new level"


def test_scaled_levels_show_missing_tiles_as_means(tmp_path: Path) -> None:
    image = content(512, 512, "smooth")
    path = write_tiled(tmp_path / "a.tif", [image], jpeg_ycbcr(), vendor="generic-tiff", missing=(0,))
    backend = OpenSlideBackend(path, "dct")
    read = backend.read_region(0, 0, 1, 256, 256)
    assert (read[:128, :128] == 255).all()
    fine = by_openslide(path, 0).reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert abs(read - fine).max() <= 0.5
    backend.close()


def test_lossless_levels_are_not_scaled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", content(300, 300), tile=(128, 128), photometric="rgb", metadata=None)
    backend = OpenSlideBackend(tmp_path / "a.tif", "dct")
    assert len(backend.info.levels) == 1
    backend.close()


def test_a_draft_is_decoded_smaller_and_no_smaller_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = content(1000, 777, "smooth")
    path = write_tiled(tmp_path / "a.svs", [image], jpeg_ycbcr(quality=95))
    wholes = []
    monkeypatch.setattr(Slide, "whole_level", lambda slide, level: wholes.append(level) or whole)
    with open_slide(path) as slide:
        whole = by_openslide(path, 0)
        for least, times in ((125, 8), (126, 4), (500, 2)):
            draft, height, width = slide.draft(0, least), 777 // times, 1000 // times
            assert draft.shape == (height, width, 3)
            means = image[: height * times, : width * times].reshape(height, times, width, times, 3).mean((1, 3))
            assert abs(draft - means).mean() < 1.5
        assert not wholes
        assert slide.draft(0, 501) is whole
        assert slide.draft(0, 5000) is whole


@pytest.mark.parametrize("why", ["missing", "lossless", "openslide"])
def test_what_cannot_be_decoded_smaller_is_drafted_whole(tmp_path: Path, why: str) -> None:
    image, path = content(512, 512, "smooth"), tmp_path / "a.tif"
    if why == "lossless":
        tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", metadata=None)
    else:
        missing = (0,) if why == "missing" else ()
        write_tiled(path, [image], jpeg_ycbcr(), vendor="generic-tiff", missing=missing)
    reader = "openslide(decode='openslide')" if why == "openslide" else "openslide"
    with open_slide(path, reader=reader, mpp=0.5) as slide:
        np.testing.assert_array_equal(slide.draft(0, 100), by_openslide(path, 0))


def test_a_draft_of_a_tile_that_cannot_be_decoded_is_an_error(tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.svs", [content(512, 512)], jpeg_ycbcr())
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\0" * count)
    with open_slide(path) as slide, pytest.raises(SlideReadError, match=r"a\.svs"):
        slide.draft(0, 100)
