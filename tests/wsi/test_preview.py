"""The small picture: outlines and tiles are where they should be, values have their colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from histotl.core.errors import UsageError
from histotl.core.values import SlideInfo, TileSpec
from histotl.wsi.mask import outlines
from histotl.wsi.preview import _SCALE, draw_preview, shrink_picture
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


def test_overlapping_tiles_add_up_as_one_by_one(slide_info: Make) -> None:
    grid = plan_tiles(slide_info(997, 743, mpp_x=1.0, mpp_y=1.0), TileSpec(tile_px=120, mpp=1.0, overlap_px=50))
    values = np.random.default_rng(0).random(len(grid))
    values[::7] = np.nan
    picture = draw_preview(WHITE, scale_l0=(9.97, 9.9), polygons=(), grid=grid, values=values, by="value")
    total, count = np.zeros(WHITE.shape[:2]), np.zeros(WHITE.shape[:2])
    for (x, y), value in zip(grid.coords_l0.tolist(), values.tolist(), strict=True):
        if not np.isnan(value):
            rows = slice(round(y / 9.9), round((y + 120) / 9.9))
            columns = slice(round(x / 9.97), round((x + 120) / 9.97))
            total[rows, columns] += value
            count[rows, columns] += 1
    bare = count == 0
    assert (picture[bare] == 255).all()
    place = total[~bare] / count[~bare] * (len(_SCALE) - 1)
    wanted = np.stack([np.interp(place, range(len(_SCALE)), _SCALE[:, channel]) for channel in range(3)], axis=-1)
    assert abs(picture[~bare] - (0.4 * 255 + 0.6 * wanted)).max() <= 1


@pytest.mark.parametrize(
    ("shape", "longest", "wanted"),
    [
        ((2560, 1280), 1024, (1024, 512)),
        ((999, 1501), 500, (333, 500)),
        ((30, 40), 1024, (30, 40)),
        ((1, 4000), 9, (1, 9)),
    ],
)
def test_pictures_are_shrunk_to_a_length(shape: tuple[int, int], longest: int, wanted: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([255 * x / shape[1], 255 * y / shape[0], np.full(shape, 90.0)], axis=-1).astype(np.uint8)
    small = shrink_picture(image, longest)
    assert small.shape == (*wanted, 3)
    # Nothing moves: the brightness of every pixel says where it lies.
    at = (np.arange(wanted[1]) + 0.5) / wanted[1] * 255
    assert abs(small[..., 0].mean(0) - at).max() < 255 / wanted[1] + 2
    assert (small[..., 2] == 90).all()
