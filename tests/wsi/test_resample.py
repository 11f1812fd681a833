"""Resampling: the same picture as Pillow's wherever torch does it, and regions that hold all that the filter needs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histotl.wsi._resample import ALIGNED, ANYWHERE, COPY, Windows, Workspace, place

Pixels = npt.NDArray[np.uint8]
SCALES = (1.002, 1.3, 2.0, 2.41, 3.9998, 4.0, 9.7)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def region_of(windows: Windows, row: int, image: Pixels) -> Pixels:
    (left, top), (right, bottom) = windows.first[row].tolist(), windows.last[row].tolist()
    assert 0 <= left < right <= image.shape[1]
    assert 0 <= top < bottom <= image.shape[0]
    return image[top:bottom, left:right]


def render(windows: Windows, row: int, image: Pixels, work: Workspace | None = None) -> Pixels:
    width, height = windows.out_px
    tile = np.empty((height, width, 3), np.uint8)
    region = np.ascontiguousarray(region_of(windows, row, image))
    (work or Workspace()).render(windows, [row], region[None], [tile])
    return tile


def by_pillow(image: Pixels, corner: tuple[float, float], size: tuple[float, float], out: tuple[int, int]) -> Pixels:
    box = (corner[0], corner[1], corner[0] + size[0], corner[1] + size[1])
    return np.asarray(Image.fromarray(image).resize(out, Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("out", [(60, 60), (52, 67)])
def test_shrinking_is_pillows_within_one_level(scale: float, out: tuple[int, int]) -> None:
    size = (out[0] * scale, out[1] * scale)
    corner = (50.0, 47.0)
    image = noise(*(int(side * scale + 150) for side in out[::-1]))
    windows = place(np.array([corner]), size, out)
    assert windows.mode.tolist() == [ALIGNED]
    # Where the tile lies once its place is a whole number of output pixels from its region.
    shifted = windows.first[0] + windows.halo[0] * np.array(windows.scale)
    assert abs(shifted - corner).max() <= 0.02 * scale
    error = render(windows, 0, image).astype(int) - by_pillow(image, tuple(shifted), size, out)
    assert abs(error).max() <= 1
    assert (error != 0).mean() < 0.02


@pytest.mark.parametrize("scale", [0.4, 0.85, 0.96])
def test_enlarging_is_pillows_within_two_levels(scale: float) -> None:
    out, size = (80, 80), (80 * scale, 80 * scale)
    image = noise(200, 200)
    windows = place(np.array([[50.0, 50.0]]), size, out)
    assert windows.mode.tolist() == [ALIGNED]
    shifted = windows.first[0] + windows.halo[0] * np.array(windows.scale)
    error = render(windows, 0, image).astype(int) - by_pillow(image, tuple(shifted), size, out)
    assert abs(error).max() <= 2
    assert abs(error).mean() < 0.1


def test_a_region_of_as_many_pixels_as_the_tile_and_its_halo_is_resampled() -> None:
    """Torch would take it for a picture that keeps its size, and copy it."""
    size, out = (0.992 * 258, 0.992 * 258), (258, 258)
    image = noise(400, 400)
    windows = place(np.array([[50.0, 50.0]]), size, out)
    assert windows.mode.tolist() == [ALIGNED]
    assert (windows.last - windows.first).min() == out[0] + windows.halo[0, 0] + 1, "one more than needed"
    shifted = windows.first[0] + windows.halo[0] * np.array(windows.scale)
    error = render(windows, 0, image).astype(int) - by_pillow(image, tuple(shifted), size, out)
    assert abs(error).max() <= 2


def test_whole_scales_at_whole_places_are_pillows_to_the_bit() -> None:
    image = noise(400, 400)
    for scale in (2, 3, 4):
        windows = place(np.array([[30.0, 40.0]]), (50.0 * scale, 50.0 * scale), (50, 50))
        expected = by_pillow(image, (30, 40), (50 * scale, 50 * scale), (50, 50))
        assert np.array_equal(render(windows, 0, image), expected)


def test_places_between_pixels_are_pillows_to_the_bit() -> None:
    image = noise(400, 400)
    windows = place(np.array([[30.5, 40.0], [30.0, 40.25]]), (100.0, 100.0), (50, 50))
    assert windows.mode.tolist() == [ANYWHERE] * 2
    assert np.array_equal(render(windows, 0, image), by_pillow(image, (30.5, 40), (100, 100), (50, 50)))
    assert np.array_equal(render(windows, 1, image), by_pillow(image, (30, 40.25), (100, 100), (50, 50)))


def test_a_fraction_of_the_scale_makes_any_place_whole() -> None:
    """With 1.25 source pixels a pixel, two pixels before x = 40.5 is 38."""
    windows = place(np.array([[40.5, 40.75]]), (125.0, 125.0), (100, 100))
    assert windows.mode.tolist() == [ALIGNED]
    assert windows.first.tolist() == [[38, 37]]
    assert windows.halo.tolist() == [[2, 3]]
    image = noise(200, 200)
    error = render(windows, 0, image).astype(int) - by_pillow(image, (40.5, 40.75), (125, 125), (100, 100))
    assert abs(error).max() <= 1


@pytest.mark.parametrize(
    ("corner", "size", "mode"),
    [
        ((10.0, 20.0), (64.0, 64.0), COPY),
        ((10.019, 19.981), (64.0, 64.0), COPY),
        ((10.0, 20.0), (64.019, 63.981), COPY),
        ((10.019, 20.0), (64.01, 64.0), ALIGNED),  # 0.029 px at its right border
        ((10.03, 20.0), (64.0, 64.0), ANYWHERE),
        ((10.0, 20.0), (72.0, 64.0), ALIGNED),
        ((-3.0, -5.0), (64.0, 64.0), COPY),
    ],
)
def test_pixels_are_taken_as_they_are_within_a_fiftieth(
    corner: tuple[float, float], size: tuple[float, float], mode: int
) -> None:
    windows = place(np.array([corner]), size, (64, 64))
    assert windows.mode.tolist() == [mode]
    if mode == COPY:
        assert windows.first.tolist() == [[round(corner[0]), round(corner[1])]]
        assert (windows.last - windows.first).tolist() == [[64, 64]]


corners = st.lists(st.tuples(st.floats(100, 900), st.floats(100, 900)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=80)
@given(corners, st.floats(0.3, 12), st.floats(0.9, 1.1), st.integers(1, 70))
def test_regions_hold_all_that_the_filter_needs(
    places: list[tuple[float, float]], scale: float, stretch: float, out: int
) -> None:
    """More pixels around a region change nothing; each tile is placed as if it were alone."""
    size = (out * scale, out * scale * stretch)
    windows = place(np.array(places), size, (out, out))
    work = Workspace()
    image = noise(int(950 + size[1] + 5 * scale * stretch), int(950 + size[0] + 5 * scale))[:2400, :2400]
    # Of middling levels: Pillow chooses the order of its two passes by the sizes, and between them it clips overshoots.
    image = image // 2 + 64
    for row, corner in enumerate(places):
        alone = place(np.array([corner]), size, (out, out))
        for mine, other in ((windows.first, alone.first), (windows.last, alone.last), (windows.halo, alone.halo)):
            assert mine[row].tolist() == other[0].tolist()
        (left, top), (right, bottom) = windows.first[row].tolist(), windows.last[row].tolist()
        if left < 0 or top < 0 or right > image.shape[1] or bottom > image.shape[0] or windows.mode[row] == COPY:
            continue
        shifted = tuple(corner)
        if windows.mode[row] == ALIGNED:
            shifted = tuple(windows.first[row] + windows.halo[row] * np.array(windows.scale))
        wide = by_pillow(image, shifted, size, (out, out)).astype(int)
        assert abs(render(windows, row, image, work) - wide).max() <= 2


def test_tiles_resampled_together_are_those_resampled_alone() -> None:
    image = noise(400, 900)
    places = np.array([[20.0 + 60 * number, 30.0] for number in range(8)])
    windows = place(places, (130.26, 130.26), (130, 130))
    kinds = windows.kinds()
    assert len(set(kinds.tolist())) == 1
    regions = np.stack([region_of(windows, row, image) for row in range(8)])
    out = np.empty((8, 130, 130, 3), np.uint8)
    Workspace().render(windows, list(range(8)), regions, list(out))
    for row in range(8):
        assert np.array_equal(out[row], render(windows, row, image))


def test_kinds_tell_apart_what_cannot_be_resampled_together() -> None:
    windows = place(
        np.array([[40.5, 40.75], [40.75, 40.5], [40.0, 40.0], [40.1, 40.1], [40.1, 40.1]]), (125, 125), (100, 100)
    )
    assert windows.mode.tolist() == [ALIGNED] * 3 + [ANYWHERE] * 2
    assert len(set(windows.kinds().tolist())) == 5
    assert place(np.array([[1.0, 2.0], [3.0, 4.0]]), (8, 8), (8, 8)).kinds().tolist() == [COPY, COPY]


def test_memory_is_used_again_and_inference_mode_does_not_matter() -> None:
    image, work = noise(300, 300), Workspace()
    windows = place(np.array([[40.0, 40.0]]), (200.0, 200.0), (100, 100))
    first = render(windows, 0, image, work)
    with torch.inference_mode():
        assert np.array_equal(render(windows, 0, image, work), first)
    with torch.no_grad():
        assert np.array_equal(render(windows, 0, image, work), first)
    assert np.array_equal(render(windows, 0, image, work), first)
    large, small = work.regions(2, 50, 40), work.regions(1, 10, 10)
    assert large.shape == (2, 50, 40, 3)
    assert np.shares_memory(large, small)


def test_reading_at_the_slides_own_scale_does_not_load_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from histotl.wsi.slide import open_array\n"
        "from histotl.wsi.tiles import read_tiles\n"
        "from histotl.wsi.tiling import plan_tiles\n"
        "from histotl.core.values import TileSpec\n"
        "slide = open_array(np.zeros((90, 90, 3), np.uint8), mpp=0.5)\n"
        "read_tiles(slide, plan_tiles(slide.info, TileSpec(tile_px=30)), slice(None)); slide.thumbnail(0.5)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
