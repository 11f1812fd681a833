"""The small picture: outlines and tiles are where they should be, values have their colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from histotl.core.errors import UsageError
from histotl.core.values import SlideInfo, TileSpec
from histotl.wsi.mask import outlines
from histotl.wsi.preview import _SCALE, draw_preview
from histotl.wsi.tiling import plan_tiles

Make = Callable[..., SlideInfo]
WHITE = np.full((75, 100, 3), 255, np.uint8)


def test_outlines_and_grid_lie_where_they_should(slide_info: Make) -> None:
    mask = np.zeros((75, 100), bool)
    mask[20:60, 30:80] = True
    info = slide_info(1000, 750, mpp_x=1.0, mpp_y=1.0)
    grid = plan_tiles(info, TileSpec(tile_px=250, mpp=1.0))
    picture = draw_preview(WHITE, scale_l0=(10.0, 10.0), polygons=outlines(mask, (10.0, 10.0)), grid=grid)
    assert picture.shape == WHITE.shape
    assert (WHITE == 255).all(), "the picture given is not changed"
    drawn = (picture != 255).any(2)
    assert drawn[:, [0, 24, 25, 49, 50, 74, 75, 99]].all()
    assert drawn[20, 30:80].all()
    assert drawn[20:60, 30].all()
    assert not drawn[5:15, 5:15].any()
    plain = draw_preview(WHITE, scale_l0=(10.0, 10.0), polygons=(), grid=None)
    assert np.array_equal(plain, WHITE)
    assert plain.flags.writeable


def test_values_have_colours_and_overlaps_their_mean(slide_info: Make) -> None:
    info = slide_info(1000, 250, mpp_x=1.0, mpp_y=1.0)
    grid = plan_tiles(info, TileSpec(tile_px=250, mpp=1.0))
    picture = draw_preview(
        WHITE[:25], scale_l0=(10.0, 10.0), polygons=(), grid=grid, values=np.array([0.0, 1.0, np.nan, 0.5]), by="value"
    )
    for column, place in ((10, 0), (30, 4), (85, 2)):
        assert abs(picture[10, column] - (0.4 * 255 + 0.6 * _SCALE[place])).max() <= 1
    assert (picture[:, 50:75] == 255).all(), "NaN leaves the tile bare"
    half = plan_tiles(info, TileSpec(tile_px=250, mpp=1.0, overlap_px=125))
    values = np.zeros(len(half))
    values[0] = 1.0
    picture = draw_preview(WHITE[:25], scale_l0=(10.0, 10.0), polygons=(), grid=half, values=values, by="value")
    assert abs(picture[5, 15] - (0.4 * 255 + 0.6 * _SCALE[2])).max() <= 1


def test_ranks_do_not_follow_outliers(slide_info: Make) -> None:
    grid = plan_tiles(slide_info(500, 250, mpp_x=1.0, mpp_y=1.0), TileSpec(tile_px=100, mpp=1.0))
    args = {"scale_l0": (10.0, 10.0), "polygons": (), "grid": grid}
    small = draw_preview(WHITE[:25, :50], values=np.arange(10.0), **args)  # type: ignore[arg-type]
    large = draw_preview(WHITE[:25, :50], values=np.exp(np.arange(10.0) * 5), **args)  # type: ignore[arg-type]
    assert np.array_equal(small, large)
    assert len(np.unique(small.reshape(-1, 3), axis=0)) == 11
    equal = draw_preview(WHITE[:25, :50], values=np.full(10, 3.0), **args)  # type: ignore[arg-type]
    assert len(np.unique(equal[:20].reshape(-1, 3), axis=0)) == 1


def test_values_must_match_the_grid(slide_info: Make) -> None:
    grid = plan_tiles(slide_info(), TileSpec())
    with pytest.raises(UsageError, match="2 values"):
        draw_preview(WHITE, scale_l0=(40.0, 40.0), polygons=(), grid=grid, values=np.zeros(2))
    with pytest.raises(UsageError, match="2 values for 0 tiles"):
        draw_preview(WHITE, scale_l0=(40.0, 40.0), polygons=(), grid=None, values=np.zeros(2))


def test_tiles_smaller_than_a_pixel(slide_info: Make) -> None:
    grid = plan_tiles(slide_info(100, 75, mpp_x=1.0, mpp_y=1.0), TileSpec(tile_px=10, mpp=1.0))
    for values in (None, np.zeros(len(grid))):
        draw_preview(WHITE[:2, :3], scale_l0=(33.3, 37.5), polygons=(), grid=grid, values=values)
