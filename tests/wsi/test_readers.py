"""Every reader on files that are written here: whole, odd, transparent, single-channel, damaged."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from histotl.core.errors import MppError, NotBrightfieldError, SlideOpenError, SlideReadError, UnknownNameError
from histotl.core.registry import create
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.readers import _tiff, image
from histotl.wsi.readers._describe import background, bounds, pixel_size
from histotl.wsi.readers.openslide import OpenSlideBackend
from histotl.wsi.slide import open_array, open_slide

Pixels = npt.NDArray[np.uint8]
Waves = Callable[[int, int], Pixels]
Stained = Callable[..., Pixels]


@pytest.fixture
def tissue(stained: Stained) -> Pixels:
    image = np.full((320, 416, 3), 243, np.uint8)
    image[60:260, 80:340] = stained(200, 260)
    return image


def one_line(error: SlideOpenError | SlideReadError | NotBrightfieldError | MppError) -> str:
    assert "\n" not in error.message
    assert error.hint
    assert "\n" not in error.hint
    return error.message


# --- what is read is what is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", ["generic-tiff", "aperio"])
def test_openslide_reads_pyramids(tmp_path: Path, tissue: Pixels, vendor: str) -> None:
    path = write_pyramid(
        tmp_path / "a.svs", tissue, mpp=0.25, levels=(1, 2), vendor=vendor, quality=98, subsampling="444"
    )
    with open_slide(path) as slide:
        info = slide.info
        assert (info.reader, info.vendor, info.width, info.height) == ("openslide", vendor, 416, 320)
        assert info.mpp == pytest.approx(0.25)
        assert len(info.levels) == 2
        tile = slide.read(100, 80, (128, 128), 128)
        assert abs(tile.astype(int) - tissue[80:208, 100:228]).mean() < 3


WRITERS: dict[str, Callable[[Path, Pixels], None]] = {
    "png": lambda path, image: Image.fromarray(image).save(path),
    "rgba.png": lambda path, image: Image.fromarray(image).convert("RGBA").save(path),
    "strips.tif": lambda path, image: tifffile.imwrite(path, image, rowsperstrip=7, compression="zlib"),
    "raw.tif": lambda path, image: tifffile.imwrite(path, image, photometric="rgb"),
    "planar.tif": lambda path, image: tifffile.imwrite(
        path, np.moveaxis(image, 2, 0), photometric="rgb", planarconfig="separate"
    ),
    "lzw.ome.tif": lambda path, image: tifffile.imwrite(
        path, image, compression="lzw", tile=(64, 48), photometric="rgb", metadata={"axes": "YXS"}
    ),
    "big-endian.tif": lambda path, image: tifffile.imwrite(path, image, byteorder=">", photometric="rgb"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_image_reader_is_lossless(tmp_path: Path, tissue: Pixels, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    WRITERS[kind](path, tissue)
    with open_slide(path, mpp=0.5, reader="image") as slide:
        assert (slide.info.width, slide.info.height) == (416, 320)
        assert np.array_equal(slide.thumbnail(0.5)[0], tissue)
        assert np.array_equal(slide.read(50, 30, (100, 100), 100), tissue[30:130, 50:150])
        assert np.array_equal(slide.read(316, 220, (100, 100), 100), tissue[220:, 316:])


def test_jpeg_and_palettes(tmp_path: Path, tissue: Pixels) -> None:
    Image.fromarray(tissue).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    Image.fromarray(tissue).quantize(64).save(tmp_path / "p.png")
    for name in ("a.jpg", "p.png"):
        with open_slide(tmp_path / name, mpp=0.5) as slide:
            read = slide.thumbnail(0.5)[0]
        assert abs(read.astype(int) - tissue).mean() < 8, name
    table = np.random.default_rng(0).integers(0, 2**16, (3, 256)).astype(np.uint16)
    index = np.random.default_rng(1).integers(0, 256, (40, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", index, photometric="palette", colormap=table)
    with open_slide(tmp_path / "p.tif", mpp=0.5) as slide:
        assert np.array_equal(slide.thumbnail(0.5)[0], (table >> 8).astype(np.uint8).T[index])


def test_ome_pyramid_gives_levels_and_pixel_size(tmp_path: Path, waves: Waves) -> None:
    image, path = waves(512, 384), tmp_path / "case 3.ome.tiff"
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}
    with tifffile.TiffWriter(path) as tif:
        tif.write(image, subifds=1, tile=(128, 128), photometric="rgb", metadata=metadata)
        tif.write(image[::2, ::2].copy(), subfiletype=1, tile=(128, 128), photometric="rgb")
    with open_slide(path, reader="image") as slide:
        assert slide.info.slide_id == "case 3"
        assert (slide.info.mpp_x, slide.info.mpp_y, slide.info.mpp_source) == (0.25, 0.25, "OME PhysicalSizeX")
        assert [level.width for level in slide.info.levels] == [512, 256]
        assert np.array_equal(slide.read(64, 64, (256, 256), 128), image[64:320:2, 64:320:2])


@pytest.mark.parametrize(
    ("arguments", "mpp"),
    [
        ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "um"}}, 0.25),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (20_000, 20_000), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_resolution_tags(tmp_path: Path, tissue: Pixels, arguments: dict[str, object], mpp: float | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue, photometric="rgb", **arguments)
    if mpp is not None:
        with open_slide(path) as slide:
            assert slide.info.mpp == pytest.approx(mpp)
            assert slide.info.mpp_source
        return
    with pytest.raises(MppError) as caught:
        open_slide(path)
    assert "a.tif" in one_line(caught.value)
    assert "--mpp-override" in caught.value.hint


def test_dots_per_inch_of_pictures_are_for_printers(tmp_path: Path, tissue: Pixels) -> None:
    Image.fromarray(tissue).save(tmp_path / "a.png", dpi=(2540, 2540))  # would be 10 µm/px
    with pytest.raises(MppError, match="does not say its pixel size"):
        open_slide(tmp_path / "a.png")


def test_npy_only_by_name(tmp_path: Path, tissue: Pixels) -> None:
    np.save(tmp_path / "a.npy", tissue)
    with pytest.raises(SlideOpenError, match="no reader can open it"):
        open_slide(tmp_path / "a.npy", mpp=0.5)
    with open_slide(tmp_path / "a.npy", mpp=0.5, reader="array") as slide:
        assert np.array_equal(slide.thumbnail(0.5)[0], tissue)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(SlideOpenError, match="not a NumPy array file"):
        open_slide(tmp_path / "objects.npy", mpp=0.5, reader="array")


# --- transparency, backgrounds, bounds -------------------------------------------------------------------------------


def test_transparency_is_laid_over_the_slides_own_background(tissue: Pixels, tmp_path: Path) -> None:
    rgba = np.dstack([tissue, np.full(tissue.shape[:2], 255, np.uint8)])
    rgba[:, :208, 3] = 0
    rgba[:, 208:300, 3] = 51
    with open_array(rgba, mpp=0.5, background=(10, 20, 230)) as slide:
        read = slide.thumbnail(0.5)[0].astype(int)
    assert (read[:, :208] == (10, 20, 230)).all()
    mixed = np.round(tissue[:, 208:300] * 0.2 + np.array([10, 20, 230]) * 0.8)
    assert abs(read[:, 208:300] - mixed).max() <= 1
    assert np.array_equal(read[:, 300:], tissue[:, 300:])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert (slide.thumbnail(0.5)[0][:, :208] == 255).all()


def test_openslide_metadata_of_mirax() -> None:
    """Bounds and background as MIRAX files give them; there is no small MIRAX file to write."""
    keys = {"openslide.bounds-x": "1000", "openslide.bounds-y": "500", "openslide.background-color": "F0E1D2"}
    keys |= {"openslide.bounds-width": "9999", "openslide.bounds-height": "300"}
    assert bounds(keys, 5000, 4000) == (1000, 500, 4000, 300), "clipped to the slide"
    assert bounds({}, 5000, 4000) == (0, 0, 5000, 4000)
    assert background(keys) == (240, 225, 210)
    assert background({}) == (255, 255, 255)


def test_openslide_pixel_size_by_vendor() -> None:
    tags = {"tiff.XResolution": "20000", "tiff.YResolution": "40000", "tiff.ResolutionUnit": "centimeter"}
    assert pixel_size(tags, "generic-tiff") == (0.5, 0.25, "tiff.XResolution")
    assert np.isnan(pixel_size(tags, "trestle")[0]), "other vendors put other things there"
    own = {"openslide.mpp-x": "0.2", "openslide.mpp-y": "0.3"}
    assert pixel_size(own | tags, "aperio") == (0.2, 0.3, "openslide.mpp-x")
    assert pixel_size({"openslide.mpp-x": "0.2"}, "aperio")[2] == "", "one axis is not enough"


# --- what cannot be opened or read -----------------------------------------------------------------------------------


def test_every_readers_reason_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(b"IJrE" + bytes(500))
    with pytest.raises(SlideOpenError) as caught:
        open_slide(path)
    message = one_line(caught.value)
    for part in ("openslide: Unsupported or missing image file", "image: not a TIFF file", "array: does not claim"):
        assert part in message
    path = tmp_path / "a.svs"
    path.write_bytes(b"")
    with pytest.raises(SlideOpenError, match=r"image: does not claim \.svs"):
        open_slide(path)


def test_wrong_paths_and_names(tmp_path: Path) -> None:
    with pytest.raises(SlideOpenError, match="no such file"):
        open_slide(tmp_path / "none.svs")
    with pytest.raises(SlideOpenError, match="a folder"):
        open_slide(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SlideOpenError, match=r"does not claim \.txt"):
        open_slide(tmp_path / "a.txt")
    with pytest.raises(UnknownNameError, match="opensilde"):
        open_slide(tmp_path / "a.txt", reader="opensilde")


def test_a_file_without_the_right_to_read_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"II")
    # A system administrator, as tests in containers are, may read every file.
    monkeypatch.setattr(os, "access", lambda asked, how: not (asked == path and how == os.R_OK))
    with pytest.raises(SlideOpenError, match="no right to read it"):
        open_slide(path)


def test_unknown_compression_is_told_when_opening(tmp_path: Path, tissue: Pixels) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(52479)
    with pytest.raises(SlideOpenError, match="compression 52479"):
        open_slide(path, mpp=0.5)


def test_sixteen_bits_are_refused(tmp_path: Path, tissue: Pixels) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue.astype(np.uint16) * 257, photometric="rgb")
    with pytest.raises(SlideOpenError, match="pixels are uint16"):
        open_slide(tmp_path / "a.tif", mpp=0.5)


def truncated(path: Path, keep: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_pictures_fail_when_they_are_read(tmp_path: Path, tissue: Pixels, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(tissue).save(path)
    truncated(path, 0.5)
    with open_slide(path, mpp=0.5) as slide, pytest.raises(SlideReadError, match="cannot be decoded") as caught:
        slide.thumbnail(8)
    one_line(caught.value)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" if suffix == "png" else b"\xff\xd8")
    with pytest.raises(SlideOpenError):
        open_slide(path, mpp=0.5)


@pytest.mark.parametrize("arguments", [{"rowsperstrip": 20}, {"tile": (64, 64)}], ids=["strips", "tiles"])
def test_damaged_tiff_is_never_filled_in(tmp_path: Path, tissue: Pixels, arguments: dict[str, object]) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, tissue, compression="zlib", photometric="rgb", metadata={"axes": "YXS"}, **arguments)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xaa" * count
    path.write_bytes(data)
    with open_slide(path, mpp=0.5, reader="image") as slide, pytest.raises(SlideReadError, match="cannot be decoded"):
        slide.read(316, 220, (100, 100), 100)


def test_openslide_recovers_from_a_bad_region(tmp_path: Path, stained: Stained) -> None:
    """OpenSlide's handle is dead after an error; the slide must still tell good regions from bad ones."""
    path = write_pyramid(tmp_path / "a.svs", stained(1024, 1024), mpp=0.5, levels=(1,), vendor="aperio")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[-1], page.databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    backend = OpenSlideBackend(path)
    good = backend.read_region(0, 0, 0, 200, 200)
    for _ in range(2):
        with pytest.raises(SlideReadError, match=r"region x=800 y=800 of level 0 cannot be decoded") as caught:
            backend.read_region(800, 800, 0, 100, 100)
        one_line(caught.value)
        assert np.array_equal(backend.read_region(0, 0, 0, 200, 200), good)
    backend.close()
    backend.close()


# --- large pictures --------------------------------------------------------------------------------------------------


def test_large_pictures_are_a_decision_and_not_a_crash(
    tmp_path: Path, tissue: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(tissue).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "strips.tif", tissue, compression="zlib", photometric="rgb")
    tifffile.imwrite(tmp_path / "raw.tif", tissue, photometric="rgb")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert np.array_equal(slide.thumbnail(0.5)[0], tissue), "Pillow's own limit has no say"
    for name in ("a.png", "strips.tif"):
        with pytest.raises(SlideOpenError, match="416x320 px would take") as caught:
            open_slide(tmp_path / name, mpp=0.5, reader="image(max_pixels=1000)")
        assert "image(max_pixels=133120)" in caught.value.hint
    with open_slide(tmp_path / "raw.tif", mpp=0.5, reader="image(max_pixels=1000)") as slide:
        assert np.array_equal(slide.read(0, 0, (50, 50), 50), tissue[:50, :50]), "read in parts, so no limit"


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_whole_pictures_are_decoded_once(
    tmp_path: Path, tissue: Pixels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decoded = tmp_path / name, []
    WRITERS["png" if name == "a.png" else "strips.tif"](path, tissue)
    for module, function in ((image, "composite"), (image._PillowSource, "_decode"), (_tiff, "to_rgb")):
        original = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *args, call=original: decoded.append(1) or call(*args))
    slide = open_slide(path, mpp=0.5)
    slide.thumbnail(4.0)
    for other in (slide, copy.copy(slide), pickle.loads(pickle.dumps(slide))):
        for x in (0, 100, 200):
            other.read(x, 50, (64, 64), 64)
    assert decoded == [1]


def test_slides_that_are_dropped_leave_no_file_open(tmp_path: Path, tissue: Pixels) -> None:
    WRITERS["strips.tif"](tmp_path / "a.tif", tissue)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        open_slide(tmp_path / "a.tif", mpp=0.5).thumbnail(8)
        gc.collect()
    assert not seen


def test_fingerprints_tell_files_apart(tmp_path: Path, tissue: Pixels) -> None:
    paths = [write_pyramid(tmp_path / f"{name}.tiff", tissue, mpp=0.5, levels=(1,)) for name in "ab"]
    Image.fromarray(tissue).save(tmp_path / "a.png")

    def fingerprint(path: Path) -> str:
        with open_slide(path, mpp=0.5) as slide:
            return slide.info.fingerprint

    assert fingerprint(paths[0]) == fingerprint(paths[1]), "the same bytes under another name"
    before = fingerprint(tmp_path / "a.png")
    tissue[100, 100] ^= 1
    write_pyramid(paths[1], tissue, mpp=0.5, levels=(1,), quality=70)
    assert fingerprint(paths[0]) != fingerprint(paths[1])
    assert len(before) == 16


def test_readers_are_tried_by_priority() -> None:
    priorities = [create("reader", name).priority for name in ("openslide", "image", "array")]  # type: ignore[attr-defined]
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == 3
