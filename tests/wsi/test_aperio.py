"""Aperio slides that are described without OpenSlide are described as OpenSlide does; all others are left to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from histotl.core.errors import SlideReadError
from histotl.wsi.readers import openslide as reader
from histotl.wsi.readers._aperio import aperio_slide
from histotl.wsi.readers._describe import describe
from histotl.wsi.readers._direct import plan_levels
from histotl.wsi.readers.openslide import OpenSlideBackend
from histotl.wsi.slide import open_slide
from tests.wsi.direct_files import jpeg_ycbcr, write_tiled


def levels(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


def described(path: Path, text: str) -> None:
    """Another description of the first page, padded to the length that is there."""
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["ImageDescription"].overwrite(text)


@pytest.mark.parametrize(
    ("sizes", "missing"),
    [([(600, 500)], [2]), ([(1021, 803), (255, 200), (63, 50)], []), ([(900, 900), (450, 449)], [])],
)
@pytest.mark.parametrize("bigtiff", [False, True])
def test_the_answer_is_openslides(
    tmp_path: Path, sizes: list[tuple[int, int]], missing: list[int], bigtiff: bool
) -> None:
    path = write_tiled(tmp_path / "a.svs", levels(*sizes), jpeg_ycbcr(), bigtiff=bigtiff, missing=missing)
    found = aperio_slide(path)
    assert found is not None
    info, plans = found
    with openslide.OpenSlide(path) as slide:
        assert info == describe(path, slide)
        theirs = plan_levels(path, info, slide.properties)
    assert [(plan.real, plan.factor, plan.reason) for plan in plans] == [
        (plan.real, plan.factor, plan.reason) for plan in theirs
    ]
    assert all(
        np.array_equal(a.page.counts, b.page.counts)
        for a, b in zip(plans, theirs, strict=True)
        if a.page is not None and b.page is not None
    )


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        ("Aperio Image|AppMag = 20|MPP = 0.2525", 0.2525),
        ("Aperio Image|MPP=0.25", 0.25),
        ("Aperio Image|MPP = 0.2|MPP = 0.3", 0.3),
        ("Aperio Image|Note = MPP = 2|MPP = 0.3|Left = 1", 0.3),
    ],
)
def test_the_pixel_size_is_the_descriptions(tmp_path: Path, text: str, mpp: float) -> None:
    path = write_tiled(tmp_path / "a.svs", levels((300, 300)), jpeg_ycbcr())
    described(path, text)
    found = aperio_slide(path)
    assert found is not None
    assert (found[0].mpp_x, found[0].mpp_y, found[0].mpp_source) == (mpp, mpp, "aperio.MPP")
    with openslide.OpenSlide(path) as slide:
        assert found[0] == describe(path, slide)


@pytest.mark.parametrize(
    "text",
    [
        "Aperio Image",
        "Aperio Image|MPP = ?",
        "Aperio Image|MPP = 0",
        "Aperio Image|MPP = nan",
        "Hologic|MPP = 0.25",
        "",
    ],
)
def test_without_sign_or_pixel_size_openslide_is_asked(tmp_path: Path, text: str) -> None:
    path = write_tiled(tmp_path / "a.svs", levels((300, 300)), jpeg_ycbcr())
    described(path, text)
    assert aperio_slide(path) is None


def test_what_is_not_just_so_is_left_to_openslide(tmp_path: Path) -> None:
    generic = write_tiled(tmp_path / "a.tiff", levels((300, 300)), jpeg_ycbcr(), vendor="generic-tiff")
    growing = write_tiled(tmp_path / "b.svs", levels((300, 300), (300, 200)), jpeg_ycbcr())
    unknown = write_tiled(tmp_path / "c.svs", levels((300, 300)), jpeg_ycbcr(), compression=34712)
    strips = tmp_path / "d.svs"
    tifffile.imwrite(
        strips, levels((300, 300))[0], photometric="rgb", description="Aperio|MPP = 0.5", metadata=None, rowsperstrip=20
    )
    text = tmp_path / "e.svs"
    text.write_text("no slide")
    big = write_tiled(tmp_path / "f.svs", levels((300, 300)), jpeg_ycbcr(), byteorder=">")
    for path in (generic, growing, unknown, strips, text, big, tmp_path / "none.svs"):
        assert aperio_slide(path) is None, path.name


def test_openslide_is_opened_only_for_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiled(tmp_path / "a.svs", levels((600, 500)), jpeg_ycbcr())
    holes = write_tiled(tmp_path / "holes.svs", levels((600, 500)), jpeg_ycbcr(), missing=[5])
    opened: list[Path] = []

    def counted(path: Path) -> openslide.OpenSlide:
        opened.append(path)
        return openslide.OpenSlide(path)

    monkeypatch.setattr(reader, "_open", counted)
    with open_slide(path, reader="openslide") as slide:
        assert (slide.info.vendor, slide.info.mpp) == ("aperio", 0.5)
        direct = slide.read(0, 0, (256, 256), 256)
    assert not opened
    with open_slide(holes, reader="openslide") as slide:
        slide.read(520, 260, (64, 64), 64)
        assert opened == [holes]
    opened.clear()
    with open_slide(path, reader="openslide(decode='openslide')") as slide:
        assert opened == [path]
        np.testing.assert_array_equal(slide.read(0, 0, (256, 256), 256), direct)


def test_a_damaged_slide_says_so_where_it_is_damaged(tmp_path: Path) -> None:
    path = write_tiled(tmp_path / "a.svs", levels((600, 500)), jpeg_ycbcr())
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 200] = bytes(200)
    path.write_bytes(data)
    backend = OpenSlideBackend(path)
    with pytest.raises(SlideReadError, match=r"tile 0 .* cannot be decoded"):
        backend.read_region(0, 0, 0, 10, 10)
    backend.close()
