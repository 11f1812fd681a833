"""Laws of the grid: it covers, stays inside, keeps its order and stride, and counts tissue exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histotl.core.errors import UpsamplingError, UsageError
from histotl.core.values import Level, SlideInfo, TileSpec
from histotl.wsi.tiling import best_level, level_scale, plan_tiles, tissue_fractions

Make = Callable[..., SlideInfo]

SIDES = st.integers(1, 1500)
UNHURRIED = settings(deadline=None, max_examples=60)
MPPS = st.floats(0.1, 1.0)
EDGES = st.sampled_from(["drop", "pad"])


@st.composite
def specs(draw: st.DrawFn, edge: str) -> TileSpec:
    tile = draw(st.integers(32, 300))
    overlap = draw(st.sampled_from([0, 1, tile // 3, tile // 2]))
    return TileSpec(tile_px=tile, mpp=draw(st.floats(0.12, 2.0)), overlap_px=overlap, edge=edge, allow_upsampling=True)


def corners(info: SlideInfo, spec: TileSpec) -> tuple[np.ndarray, np.ndarray, Any]:
    grid = plan_tiles(info, spec)
    return np.unique(grid.coords_l0[:, 0]), np.unique(grid.coords_l0[:, 1]), grid


@UNHURRIED
@given(SIDES, SIDES, MPPS, st.floats(0.96, 1.04), st.integers(0, 50), specs("drop"))
def test_dropped_edges_stay_inside(
    slide_info: Make, w: int, h: int, mpp: float, ratio: float, left: int, spec: TileSpec
) -> None:
    info = slide_info(w + left, h, mpp_x=mpp, mpp_y=mpp * ratio, bounds_l0=(left, 0, w, h))
    grid = plan_tiles(info, spec)
    ends = grid.coords_l0 + np.array(grid.footprint_l0)
    assert (grid.coords_l0 >= [left, 0]).all()
    assert (ends <= np.array([left + w, h]) + 2e-3).all()
    # As many as fit: one more stride would not, but for the rounding of its corner.
    for axis, length in enumerate((w, h)):
        side, stride = grid.footprint_l0[axis], spec.stride_um / (mpp, mpp * ratio)[axis]
        if len(grid):
            last = grid.coords_l0[:, axis].max() - (left, 0)[axis]
            assert last + stride + side > length - 1
        elif axis == 0 and side <= w - 1:
            assert grid.footprint_l0[1] > h - 1


@UNHURRIED
@given(SIDES, SIDES, MPPS, specs("pad"))
def test_padded_edges_cover_with_no_tile_to_spare(slide_info: Make, w: int, h: int, mpp: float, spec: TileSpec) -> None:
    info = slide_info(w, h, mpp_x=mpp, mpp_y=mpp)
    columns, rows, grid = corners(info, spec)
    for starts, length, side in ((columns, w, grid.footprint_l0[0]), (rows, h, grid.footprint_l0[1])):
        assert starts[0] == 0
        assert starts[-1] + side >= length - 2e-3, "the border is not covered"
        assert (np.diff(starts) <= side + 1).all(), "a gap between tiles"
        assert len(starts) == 1 or starts[-2] + side < length + 1, "a tile that nobody needs"
    assert len(grid) == len(columns) * len(rows)


@UNHURRIED
@given(SIDES, SIDES, MPPS, EDGES.flatmap(specs))
def test_order_is_row_major_and_the_stride_never_drifts(
    slide_info: Make, w: int, h: int, mpp: float, spec: TileSpec
) -> None:
    columns, rows, grid = corners(slide_info(w, h, mpp_x=mpp, mpp_y=mpp), spec)
    again = plan_tiles(slide_info(w, h, mpp_x=mpp, mpp_y=mpp), spec)
    assert np.array_equal(grid.coords_l0, again.coords_l0)
    assert grid.coords_l0.dtype == np.int64
    assert np.array_equal(grid.coords_l0, [[x, y] for y in rows for x in columns] or np.zeros((0, 2)))
    stride = spec.stride_um / mpp
    if stride >= 1:
        assert (np.abs(columns - np.arange(len(columns)) * stride) <= 0.5 + 1e-6).all()


@UNHURRIED
@given(st.floats(0.05, 50), st.integers(1, 1024), st.floats(0.05, 50))
def test_footprint_is_exact_in_micrometres(slide_info: Make, mpp: float, tile: int, slide_mpp: float) -> None:
    info = slide_info(mpp_x=slide_mpp, mpp_y=slide_mpp * 1.04)
    grid = plan_tiles(info, TileSpec(tile_px=tile, mpp=mpp, allow_upsampling=True))
    assert math.isclose(grid.footprint_l0[0] * info.mpp_x, tile * mpp, rel_tol=1e-12)
    assert math.isclose(grid.footprint_l0[1] * info.mpp_y, tile * mpp, rel_tol=1e-12)


def brute_fraction(mask: np.ndarray, scale: tuple[float, float], x: float, y: float, w: float, h: float) -> float:
    """Area of the mask's pixels inside a box, pixel by pixel."""
    total = 0.0
    for row, column in np.argwhere(mask):
        across = min(x + w, (column + 1) * scale[0]) - max(x, column * scale[0])
        down = min(y + h, (row + 1) * scale[1]) - max(y, row * scale[1])
        total += max(across, 0) * max(down, 0)
    return total / (w * h)


@UNHURRIED
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)),
    st.floats(0.7, 40),
    st.floats(0.7, 40),
    st.lists(st.integers(-20, 200), min_size=1, max_size=3),
    st.lists(st.integers(-20, 200), min_size=1, max_size=3),
    st.floats(0.5, 150),
    st.floats(0.5, 150),
)
def test_tissue_fraction_equals_brute_force(
    mask: np.ndarray, sx: float, sy: float, xs: list[int], ys: list[int], w: float, h: float
) -> None:
    found = tissue_fractions(mask, (sx, sy), np.array(xs), np.array(ys), (w, h))
    expected = [[brute_fraction(mask, (sx, sy), x, y, w, h) for x in xs] for y in ys]
    assert np.allclose(found, expected, atol=1e-5)


def test_tiles_with_little_tissue_are_dropped_and_the_rest_keep_their_fraction(slide_info: Make) -> None:
    info = slide_info(400, 200, mpp_x=1.0, mpp_y=1.0)
    mask = np.zeros((20, 40), bool)
    mask[:10, :10] = True  # level-0 x 0..100, y 0..100
    mask[:5, 10:20] = True  # x 100..200, y 0..50
    spec = TileSpec(tile_px=100, mpp=1.0, min_tissue=0.5)
    grid = plan_tiles(info, spec, mask, (10.0, 10.0))
    assert grid.coords_l0.tolist() == [[0, 0], [100, 0]]
    assert grid.tissue_fraction.tolist() == [1.0, 0.5]
    everywhere = plan_tiles(info, TileSpec(tile_px=100, mpp=1.0, min_tissue=1.0), np.ones((20, 40), bool), (10.0, 10.0))
    assert len(everywhere) == 8
    assert len(plan_tiles(info, spec)) == 8, "no mask keeps every tile"
    assert plan_tiles(info, spec, np.zeros((20, 40), bool), (10.0, 10.0)).coords_l0.shape == (0, 2)


def test_a_slide_smaller_than_a_tile(slide_info: Make) -> None:
    info = slide_info(1, 1, mpp_x=0.5, mpp_y=0.5)
    assert len(plan_tiles(info, TileSpec())) == 0
    assert plan_tiles(info, TileSpec(edge="pad")).coords_l0.tolist() == [[0, 0]]


def test_fractions_of_tall_tiles_on_a_tall_mask() -> None:
    """Rows are added up in bytes: a tile of all tissue over far more rows than a byte counts is still all tissue."""
    mask = np.ones((3000, 40), bool)
    mask[1000:2000] = False
    rows, columns = np.array([0, 500, 900, 2100]), np.array([0, 10])
    found = tissue_fractions(mask, (1.0, 1.0), columns, rows, (20.0, 800.0))
    np.testing.assert_allclose(found, [[1.0] * 2, [0.625] * 2, [0.125] * 2, [1.0] * 2])


@pytest.mark.parametrize(("slide_mpp", "hint"), [(28.9685, "--mpp 29,"), (0.631, "--mpp 0.64,"), (1.0, "--mpp 1,")])
def test_upsampling_is_refused_with_the_slides_own_scale(slide_info: Make, slide_mpp: float, hint: str) -> None:
    info = slide_info(mpp_x=slide_mpp, mpp_y=slide_mpp)
    with pytest.raises(UpsamplingError) as caught:
        plan_tiles(info, TileSpec(mpp=0.5))
    assert hint in caught.value.hint
    assert "--allow-upsampling" in caught.value.hint
    suggested = float(caught.value.hint.split("--mpp ")[1].split(",")[0])
    plan_tiles(info, TileSpec(mpp=suggested))
    grid = plan_tiles(info, TileSpec(mpp=0.5, allow_upsampling=True))
    assert grid.read_level == 0


def test_slides_of_one_nominal_magnification_are_no_upsampling(slide_info: Make) -> None:
    for mpp in (0.499, 0.5015, 0.52):
        plan_tiles(slide_info(mpp_x=mpp, mpp_y=mpp), TileSpec(mpp=0.5))


def pyramid(slide_info: Make, *downsamples: float) -> SlideInfo:
    w, h = 40_000, 30_000
    levels = tuple(Level(width=int(w / d), height=int(h / d), downsample=d) for d in downsamples)
    return slide_info(w, h, levels=levels)


@pytest.mark.parametrize(
    ("downsamples", "wanted", "level"),
    [
        ((1, 4, 16), 4.0, 1),
        ((1, 3.9998, 16.002), 4.0, 1),
        ((1, 4.0002, 15.998), 4.0, 1),
        ((1, 4.0002, 16.01), 16.0, 2),
        ((1, 4, 16), 3.9, 0),
        ((1, 4, 16), 3.97, 1),
        ((1, 4, 16), 100.0, 2),
        ((1, 4, 16), 0.5, 0),
        ((1, 2, 4, 8), 7.9, 2),
    ],
)
def test_best_level(slide_info: Make, downsamples: tuple[float, ...], wanted: float, level: int) -> None:
    assert best_level(pyramid(slide_info, *downsamples), wanted) == level


@UNHURRIED
@given(st.lists(st.floats(1.5, 5), min_size=0, max_size=4), st.floats(0.3, 300))
def test_reading_never_enlarges(slide_info: Make, steps: list[float], wanted: float) -> None:
    info = pyramid(slide_info, *np.cumprod([1.0, *steps]).tolist())
    scale = level_scale(info, best_level(info, wanted))[0]
    assert scale <= max(wanted * 1.01, 1.0) + 1e-9


def test_level_scale_follows_the_sizes_unless_the_file_says_otherwise(slide_info: Make) -> None:
    derived = (1000 / 251 + 500 / 124) / 2
    levels = (Level(width=1000, height=500, downsample=1.0), Level(width=251, height=124, downsample=derived))
    assert level_scale(slide_info(1000, 500, levels=levels), 1) == (1000 / 251, 500 / 124)
    padded = (levels[0], Level(width=256, height=256, downsample=4.0))
    assert level_scale(slide_info(1000, 500, levels=padded), 1) == (4.0, 4.0)


def test_a_mask_must_be_flat(slide_info: Make) -> None:
    with pytest.raises(UsageError, match=r"\(3, 4, 3\)"):
        plan_tiles(slide_info(), TileSpec(), np.zeros((3, 4, 3), bool), (1.0, 1.0))
