"""The pyramid writer, checked with OpenSlide as the other library."""

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from histotl.core.errors import UsageError
from histotl.wsi.pyramid import pyramid_factors, shrink, write_pyramid

Pixels = NDArray[np.uint8]


def ramps(width: int, height: int) -> Pixels:
    """Red along x, green along y: smooth, so that JPEG changes it little, and every pixel says where it is."""
    x = np.linspace(20, 230, width)[None, :]
    y = np.linspace(20, 230, height)[:, None]
    return np.stack(np.broadcast_arrays(x, y, 120.0), axis=-1).round().astype(np.uint8)


def read_level(slide: openslide.OpenSlide, level: int) -> NDArray[np.int64]:
    region = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(region.convert("RGB")).astype(np.int64)


@pytest.mark.parametrize(("vendor", "suffix"), [("generic-tiff", "tiff"), ("aperio", "svs")])
@pytest.mark.parametrize("mpp", [0.499, 0.2521, 8.0])
def test_openslide_reads_vendor_mpp_and_pixels(tmp_path, vendor, suffix, mpp):
    image = ramps(1023, 771)
    path = write_pyramid(
        tmp_path / f"a.{suffix}", image, mpp=mpp, levels=(1, 3.9998, 16), vendor=vendor, subsampling="444"
    )
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == vendor
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-3)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(mpp, rel=1e-3)
        assert slide.level_dimensions == ((1023, 771), (256, 193), (64, 48))
        assert np.abs(read_level(slide, 0) - image).max() <= 6
        for level in (1, 2):
            w, h = slide.level_dimensions[level]
            assert np.abs(read_level(slide, level) - shrink(image, w, h)).max() <= 8


def test_aperio_has_magnification_and_thumbnail(tmp_path):
    path = write_pyramid(tmp_path / "a.svs", ramps(2100, 900), mpp=0.499, vendor="aperio")
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.properties["aperio.AppMag"] == "20"
        assert slide.associated_images["thumbnail"].size == (1024, 439)
        assert slide.level_count == 3


def test_explicit_levels_of_odd_sizes_are_written_as_they_are(tmp_path):
    image = ramps(1025, 771)
    level = np.full((191, 257, 3), (10, 200, 60), np.uint8)
    path = write_pyramid(tmp_path / "a.tiff", image, mpp=0.5, levels=(1, level, 17.3))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((1025, 771), (257, 191), (59, 45))
        assert np.abs(read_level(slide, 1) - level).max() <= 3


@given(
    width=st.integers(40, 300), height=st.integers(40, 300), factor=st.floats(1.5, 9.0), strip=st.integers(400, 40_000)
)
@settings(deadline=None, max_examples=40)
def test_shrink_keeps_the_field_of_view_whatever_the_strips(width, height, factor, strip):
    image = ramps(width, height)
    w, h = max(2, round(width / factor)), max(2, round(height / factor))
    with pytest.MonkeyPatch.context() as patch:
        whole = shrink(image, w, h).astype(int)
        patch.setattr("histotl.wsi.pyramid._STRIP_BYTES", strip)
        strips = shrink(image, w, h).astype(int)
    assert np.abs(whole - strips).max() <= 1
    # Away from the border a symmetric filter keeps a ramp: the value says which input position a pixel lies over.
    centre = (np.arange(w) + 0.5) * width / w - 0.5
    expected = 20 + 210 * centre / (width - 1)
    inner = slice(2, w - 2)
    assert np.abs(whole[h // 2, inner, 0] - expected[inner]).max(initial=0) <= 1.6


def test_shrink_is_antialiased():
    stripes = np.zeros((64, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    small = shrink(stripes, 128, 16).astype(int)
    assert np.abs(small[:, 1:-1] - 127).max() <= 2  # the border pixels lean on half a filter


def test_last_tiles_do_not_ring_against_padding(tmp_path):
    image = np.full((300, 300, 3), 240, np.uint8)
    path = write_pyramid(tmp_path / "a.tiff", image, mpp=0.5, levels=(1,))
    with openslide.OpenSlide(path) as slide:
        assert np.abs(read_level(slide, 0) - 240).max() <= 1


def test_same_pixels_give_the_same_bytes_and_no_other_file(tmp_path):
    image = ramps(600, 500)
    one = write_pyramid(tmp_path / "a.tiff", image, mpp=0.5)
    two = write_pyramid(tmp_path / "b.tiff", image, mpp=0.5)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tiff", "b.tiff"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_pyramid(tmp_path / "a.tiff", ramps(600, 500), mpp=0.5)
    before = path.read_bytes()

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("histotl.wsi.pyramid.shrink", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_pyramid(path, ramps(600, 500), mpp=0.25)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tiff"]


def test_resolution_tags_of_every_level(tmp_path):
    path = write_pyramid(tmp_path / "a.tiff", ramps(1000, 800), mpp=0.5, levels=(1, 4))
    with tifffile.TiffFile(path) as tif:
        for page, mpp in zip(tif.pages, (0.5, 2.0), strict=True):
            numerator, denominator = page.tags["XResolution"].value
            assert 1e4 * denominator / numerator == pytest.approx(mpp, rel=1e-6)


def test_factors_stop_at_the_smallest_side():
    assert pyramid_factors(4096, 3000, step=4, min_side_px=256) == (1.0, 4.0)
    assert pyramid_factors(4096, 4096, step=2, min_side_px=1024) == (1.0, 2.0, 4.0)
    assert pyramid_factors(100, 100) == (1.0,)
    with pytest.raises(UsageError, match="step"):
        pyramid_factors(100, 100, step=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": 0.0}, "mpp is 0.0"),
        ({"mpp": float("nan")}, "mpp is nan"),
        ({"tile_px": 100}, "tile_px is 100"),
        ({"quality": 0}, "quality is 0"),
        ({"vendor": "leica"}, "vendor is 'leica'"),
        ({"subsampling": "411"}, "subsampling is '411'"),
        ({"levels": (2, 4)}, "begin"),
        ({"levels": ()}, "begin"),
        ({"levels": (1, 4, 4)}, "does not shrink"),
        ({"levels": (1, 0.5)}, "below 1"),
        ({"levels": (1, np.zeros((9, 9), np.uint8))}, "shape"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, change, message):
    options = {"mpp": 0.5} | change
    with pytest.raises(UsageError, match=message):
        write_pyramid(tmp_path / "a.tiff", ramps(300, 300), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", [np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 3), np.float32)])
def test_wrong_pixels_are_refused(tmp_path, image):
    with pytest.raises(UsageError, match="uint8 RGB"):
        write_pyramid(tmp_path / "a.tiff", image, mpp=0.5, levels=(1,))
