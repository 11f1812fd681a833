"""Field of view on a painted ruler, from 0.12 to 1.0 µm/px, through a real pyramid with awkward factors and odd sizes.

The tiler is asked for tiles; where each one lies and how much it shows is then measured from its own pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histotl.core.values import TileSpec
from histotl.paint.ruler import paint_ruler, read_ruler
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.slide import open_slide
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tiling import plan_tiles

MPP, SIZE = 0.12, (3101, 2903)
EXTENT_UM = (SIZE[0] * MPP, SIZE[1] * MPP)
SWEEP = np.round(np.linspace(0.12, 1.0, 12), 4)


@pytest.fixture(scope="module", params=[(1, 3.9998, 16), (1, 4.0002), (1, 2, 8.001)], ids=str)
def ruler_slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ruler") / "ruler.tiff"
    image = paint_ruler(MPP, SIZE)
    return write_pyramid(path, image, mpp=MPP, levels=request.param, quality=100, subsampling="444")


@pytest.mark.parametrize("mpp", SWEEP)
def test_field_of_view_and_corners(ruler_slide: Path, mpp: float) -> None:
    spec = TileSpec(tile_px=224, mpp=float(mpp))
    with open_slide(ruler_slide) as slide:
        grid = plan_tiles(slide.info, spec, None)
        rows = np.unique(np.linspace(0, len(grid) - 1, 4).round().astype(int))
        tiles = read_tiles(slide, grid, rows)
        true_mpp = (slide.info.mpp_x, slide.info.mpp_y)
    assert true_mpp == pytest.approx((MPP, MPP), rel=1e-4)
    stride_l0 = spec.stride_um / np.array(true_mpp)
    places = np.round(grid.coords_l0 / stride_l0)
    # Corners are the exact stride rounded once: no drift over the slide, and the index comes back from the corner.
    assert (np.floor(places * stride_l0 + 0.5) == grid.coords_l0).all()
    for row, tile in zip(rows, tiles, strict=True):
        reading = read_ruler(tile, EXTENT_UM)
        wanted = spec.tile_um
        assert reading.width_um == pytest.approx(wanted, rel=5e-3)
        assert reading.height_um == pytest.approx(wanted, rel=5e-3)
        # OpenSlide takes whole-pixel corners of the level read, and the ruler itself is read to a tenth of a micron.
        x_um, y_um = grid.coords_l0[row] * MPP
        assert abs(reading.x_um - x_um) < max(0.003 * wanted, 0.15)
        assert abs(reading.y_um - y_um) < max(0.003 * wanted, 0.15)
