"""Reading: exact to a fraction of a pixel from any pyramid, background beyond the border, pixel size checked."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histotl.core.errors import MppError, NotBrightfieldError, SlideOpenError, SlideReadError, UsageError
from histotl.core.values import Level, SlideInfo, TileSpec
from histotl.wsi.mask import find_tissue
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.slide import Slide, open_array, open_slide
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tiling import plan_tiles
from histotl.wsi.tissue.hysteresis import Hysteresis

Pixels = npt.NDArray[np.uint8]
Waves = Callable[[int, int], Pixels]
Shrink = Callable[[Pixels, int, int], Pixels]
Error = Callable[[Pixels, tuple[float, float], tuple[float, float]], float]

SWEEP = (0.12, 0.2427, 0.25, 0.31, 0.4415, 0.5, 0.73, 1.0)


@pytest.mark.parametrize("mpp", SWEEP)
@pytest.mark.parametrize("level_px", [(5000, 150), (5001, 151)], ids=["4.0002", "3.9994"])
def test_field_of_view_at_any_mpp_from_any_pyramid(
    waves: Waves, shrink: Shrink, position_error: Error, mpp: float, level_px: tuple[int, int]
) -> None:
    """Both ends of tiles lie where the grid says, in both axes, far from the origin as well."""
    image = waves(20_001, 602)
    slide = open_array(image, mpp=0.12, levels=[shrink(image, *level_px)])
    side = 56 if mpp > 0.5 else 112
    grid = plan_tiles(slide.info, TileSpec(tile_px=side, mpp=mpp))
    assert grid.read_level == (1 if mpp > 0.47 else 0)
    assert grid.footprint_l0 == pytest.approx((side * mpp / 0.12,) * 2)
    rows = np.linspace(0, len(grid) - 1, 5).astype(int)
    for corner, tile in zip(grid.coords_l0[rows], read_tiles(slide, grid, rows), strict=True):
        error = position_error(tile, tuple(corner), grid.footprint_l0)
        # 0.5 % of the field of view, split over its two ends, would be 0.0025 of it.
        assert error < min(0.25, 0.0025 * grid.footprint_l0[0])


def test_other_pixel_sizes_in_x_and_y(waves: Waves, position_error: Error) -> None:
    slide = open_array(waves(1200, 900), mpp=(0.25, 0.26))
    grid = plan_tiles(slide.info, TileSpec(tile_px=96, mpp=0.5))
    assert grid.footprint_l0 == pytest.approx((192.0, 192 * 0.25 / 0.26))
    tile = read_tiles(slide, grid, np.array([len(grid) - 1]))[0]
    assert position_error(tile, tuple(grid.coords_l0[-1]), grid.footprint_l0) < 0.2


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 300), st.floats(0, 200), st.floats(80, 300), st.integers(40, 200))
def test_sub_pixel_corners(waves: Waves, position_error: Error, x: float, y: float, side: float, out: int) -> None:
    if side / out > 5:
        return  # the wave would be undersampled
    slide = open_array(waves(700, 600), mpp=0.5)
    assert position_error(slide.read(x, y, (side, side), out), (x, y), (side, side)) < 0.3


def test_tiles_at_the_slides_own_scale_are_its_pixels(waves: Waves) -> None:
    image = waves(300, 200)
    with open_array(image, mpp=0.5) as slide:
        assert np.array_equal(slide.read(30, 40, (64, 64), 64), image[40:104, 30:94])
        whole, mpp = slide.thumbnail(0.1)
        assert np.array_equal(whole, image)
        assert mpp == 0.5


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    tile = open_array(stripes, mpp=0.25).read(64, 64, (128, 128), 32)
    assert abs(tile.astype(int) - 127).max() <= 2


def test_border_is_filled_with_the_background(waves: Waves) -> None:
    image = waves(100, 100)
    slide = open_array(image, mpp=0.5, background=(240, 230, 220))
    tile = slide.read(90, -10, (20, 20), 20)
    assert np.array_equal(tile[10:, :10], image[:10, 90:])
    assert (tile[:10] == (240, 230, 220)).all()
    assert (tile[:, 10:] == (240, 230, 220)).all()
    assert (slide.read(5000, 5000, (10, 10), 4) == (240, 230, 220)).all()


def test_tiles_fit_together(waves: Waves) -> None:
    """Neighbours read apart are one picture read at once: the filter sees across the border."""
    slide = open_array(waves(600, 300), mpp=0.25)
    whole = slide.read(40.5, 40.5, (200, 200), 80)
    left, right = (slide.read(40.5 + x, 40.5, (100, 200), 40) for x in (0, 100))
    # Two halves squeezed to squares against the whole: the same columns, so the same red.
    joined = np.concatenate([left, right], axis=1)
    assert joined.shape == (40, 80, 3)
    assert abs(joined[:, :, 0].mean(0) - whole[:, :, 0].mean(0)).max() < 1.5


def test_large_reads_go_in_blocks(waves: Waves, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_array(waves(1000, 700), mpp=0.5)
    at_once, mpp = slide.thumbnail(2.0)
    monkeypatch.setattr("histotl.wsi.slide._BLOCK_PX", 20_000)
    in_blocks, _ = slide.thumbnail(2.0)
    assert at_once.shape == (175, 250, 3)
    assert mpp == 2.0
    assert abs(at_once.astype(int) - in_blocks).max() <= 1


def test_thumbnail_says_its_true_scale(waves: Waves) -> None:
    slide = open_array(waves(997, 601), mpp=0.5)
    image, mpp = slide.thumbnail(8.0)
    assert image.shape == (38, 62, 3)
    assert mpp == pytest.approx((997 / 62 + 601 / 38) / 2 * 0.5)
    assert slide.thumbnail(1e6)[0].shape == (1, 1, 3)
    with pytest.raises(UsageError, match="0 µm/px"):
        slide.thumbnail(0)


class Spy:
    """A huge slide without pixels, which remembers what was read."""

    def __init__(self, side: int) -> None:
        levels = tuple(Level(width=side // d, height=side // d, downsample=float(d)) for d in (1, 4, 16))
        self.info = SlideInfo(
            path=Path("big"), slide_id="big", reader="spy", vendor="spy", width=side, height=side, mpp_x=0.5, mpp_y=0.5,
            mpp_source="spy", levels=levels, bounds_l0=(0, 0, side, side),
        )  # fmt: skip
        self.levels: set[int] = set()
        self.pixels = 0

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        self.levels.add(level)
        self.pixels += width * height
        return np.full((height, width, 3), 240, np.uint8)

    def close(self) -> None: ...


def test_tissue_and_grid_of_a_large_slide_read_one_coarse_level_once() -> None:
    spy = Spy(40_960)
    slide = Slide(spy.info, lambda: spy)
    found = find_tissue(slide, Hysteresis(), min_area_um2=1e4, max_hole_um2=1e4)
    plan_tiles(slide.info, TileSpec(), found.mask, found.scale_l0)
    assert spy.levels == {2}
    assert spy.pixels <= 2560 * 2560


def test_a_thumbnail_at_a_levels_own_scale_is_one_region() -> None:
    spy = Spy(16_500)  # its second level has more pixels than are resampled at a time
    reads: list[tuple[int, ...]] = []
    real = spy.read_region

    def counting(*args: int) -> Pixels:
        reads.append(args)
        return real(*args)

    spy.read_region = counting  # type: ignore[method-assign]
    image, mpp = Slide(spy.info, lambda: spy).thumbnail(2.0)
    assert (image.shape, mpp) == ((4125, 4125, 3), 2.0)
    assert reads == [(0, 0, 1, 4125, 4125)]


@pytest.mark.parametrize("mpp", [1.0, 1.03, 4.0, 4.07, 8.0])
def test_thumbnails_lie_where_they_should(waves: Waves, position_error: Error, mpp: float) -> None:
    """Position and scale are exact also where blocks meet."""
    slide = open_array(waves(2003, 1201), mpp=0.5)
    image, _ = slide.thumbnail(mpp)
    step = (2003 / image.shape[1], 1201 / image.shape[0])
    inner = image[4:-4, 4:-4]  # the background outside takes part in the filter
    size = (inner.shape[1] * step[0], inner.shape[0] * step[1])
    assert position_error(inner, (4 * step[0], 4 * step[1]), size) < 0.25


def test_slides_travel_to_other_threads_and_processes(waves: Waves, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tiff", waves(600, 500), mpp=0.5, levels=(1, 2))
    with open_slide(path) as slide:
        expected = slide.read(10, 20, (300, 300), 100)
        for other in (copy.copy(slide), pickle.loads(pickle.dumps(slide))):
            assert other.info == slide.info
            assert np.array_equal(other.read(10, 20, (300, 300), 100), expected)
            other.close()
            assert np.array_equal(slide.read(10, 20, (300, 300), 100), expected), "closing a copy closed the slide"
    again = pickle.loads(pickle.dumps(open_array(expected, mpp=1.0)))
    assert np.array_equal(again.read(0, 0, (100, 100), 100), expected)


def test_a_closed_slide_opens_again(waves: Waves, tmp_path: Path) -> None:
    slide = open_slide(write_pyramid(tmp_path / "a.tiff", waves(300, 300), mpp=0.5, levels=(1,)))
    first = slide.read(0, 0, (100, 100), 50)
    slide.close()
    slide.close()
    assert np.array_equal(slide.read(0, 0, (100, 100), 50), first)
    slide.close()


def test_tiles_can_be_written_to(waves: Waves) -> None:
    slide = open_array(waves(300, 300), mpp=0.5)
    for tile in (slide.read(0, 0, (50, 50), 50), slide.read(0, 0, (51, 51), 50), slide.thumbnail(4.0)[0]):
        assert tile.flags.writeable
        assert tile.flags.c_contiguous


@pytest.mark.parametrize(
    ("mpp", "fact"),
    [
        (352.8, "pixel size 352.8 x 352.8 µm (argument) is outside 0.05-50"),
        (0.0, "outside"),
        (-1.0, "outside"),
        (float("nan"), "does not say its pixel size"),
        ((0.25, 0.27), "differs between x and y"),
    ],
)
def test_implausible_pixel_sizes_are_refused(mpp: float | tuple[float, float], fact: str) -> None:
    with pytest.raises(MppError) as caught:
        open_array(np.zeros((4, 4, 3), np.uint8), mpp=mpp)
    assert fact in caught.value.message
    assert "\n" not in caught.value.message
    assert "--mpp-override" in caught.value.hint
    assert "column mpp" in caught.value.hint


def test_odd_but_plausible_pixel_sizes_pass() -> None:
    for mpp in (0.05, 0.1213, 28.97, 50.0, (28.969, 28.968), (0.25, 0.2624)):
        open_array(np.zeros((4, 4, 3), np.uint8), mpp=mpp)


def test_an_override_wins_and_says_who_said_so(waves: Waves, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tiff", waves(300, 300), mpp=0.5, levels=(1,))
    for kwargs, expected in (
        ({}, (0.5, "tiff.XResolution")),
        ({"mpp": 0.25}, (0.25, "--mpp-override")),
        ({"mpp": 0.25, "mpp_source": "manifest"}, (0.25, "manifest")),
    ):
        with open_slide(path, slide_id="case 7", **kwargs) as slide:
            assert (round(slide.info.mpp_x, 6), slide.info.mpp_source) == expected
            assert slide.info.slide_id == "case 7"
    with pytest.raises(MppError, match="--mpp-override"):
        open_slide(path, mpp=400.0)


def test_arrays_of_other_kinds_are_refused() -> None:
    with pytest.raises(NotBrightfieldError, match=r"not brightfield RGB: array of shape \(4, 4\)"):
        open_array(np.zeros((4, 4), np.uint8), mpp=0.5)
    with pytest.raises(NotBrightfieldError):
        open_array(np.zeros((4, 4, 1), np.uint8), mpp=0.5)
    with pytest.raises(SlideOpenError, match="float64"):
        open_array(np.zeros((4, 4, 3)), mpp=0.5)  # type: ignore[arg-type]
    with pytest.raises(SlideOpenError, match="no pixels"):
        open_array(np.zeros((0, 4, 3), np.uint8), mpp=0.5)
    with pytest.raises(SlideOpenError, match="do not shrink"):
        open_array(np.zeros((4, 4, 3), np.uint8), mpp=0.5, levels=[np.zeros((8, 8, 3), np.uint8)])


def test_one_pixel_slide() -> None:
    slide = open_array(np.full((1, 1, 3), 7, np.uint8), mpp=0.5)
    tile = slide.read(0, 0, (4, 4), 4)
    assert tile[0, 0].tolist() == [7, 7, 7]
    assert (tile[1:] == 255).all()


def test_a_read_error_is_passed_on(waves: Waves) -> None:
    class Broken(Spy):
        def read_region(self, *args: int) -> Pixels:
            raise SlideReadError("big: cannot be decoded")

    spy = Broken(1024)
    with pytest.raises(SlideReadError):
        Slide(spy.info, lambda: spy).thumbnail(8)
