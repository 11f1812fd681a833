"""The ruler measures fields of view to far better than half a percent, through JPEG and resampling."""

import numpy as np
import openslide
import pytest
from PIL import Image

from histotl.core.errors import UsageError
from histotl.paint.ruler import WAVE_UM, paint_ruler, read_ruler
from histotl.wsi.pyramid import write_pyramid

MPP, SIZE = 0.25, (4000, 3200)
EXTENT_UM = (SIZE[0] * MPP, SIZE[1] * MPP)


@pytest.fixture(scope="module")
def ruler():
    return paint_ruler(MPP, SIZE)


@pytest.mark.parametrize("side_um", [28.0, 60.0, 112.0, 300.0])
@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.5, 1.0])
def test_field_of_view_and_place_of_resampled_tiles(ruler, side_um, mpp):
    x, y, side_px = 1111, 777, round(side_um / MPP)
    tile = Image.fromarray(ruler[y : y + side_px, x : x + side_px])
    out_px = round(side_um / mpp)
    reading = read_ruler(np.asarray(tile.resize((out_px, out_px), Image.Resampling.HAMMING)), EXTENT_UM)
    assert reading.width_um == pytest.approx(side_um, rel=1.5e-3)
    assert reading.height_um == pytest.approx(side_um, rel=1.5e-3)
    assert reading.x_um == pytest.approx(x * MPP, abs=MPP / 2)
    assert reading.y_um == pytest.approx(y * MPP, abs=MPP / 2)


def test_very_coarse_tiles_are_measured_by_the_lines_alone(ruler):
    tile = np.asarray(Image.fromarray(ruler[:3200, :3200]).resize((64, 64), Image.Resampling.HAMMING))
    assert SIZE[1] * MPP / 64 * 4 > WAVE_UM
    reading = read_ruler(tile, EXTENT_UM)
    assert reading.width_um == pytest.approx(800, rel=2e-3)
    assert reading.height_um == pytest.approx(800, rel=2e-3)


def test_field_of_view_through_openslide(ruler, tmp_path):
    path = write_pyramid(tmp_path / "ruler.tiff", ruler, mpp=MPP, levels=(1, 3.9998), quality=100, subsampling="444")
    with openslide.OpenSlide(path) as slide:
        for level, side_px in ((0, 224), (0, 448), (1, 224)):
            tile = np.asarray(slide.read_region((500, 300), level, (side_px, side_px)).convert("RGB"))
            fov_um = side_px * slide.level_downsamples[level] * MPP
            reading = read_ruler(tile, EXTENT_UM)
            assert reading.width_um == pytest.approx(fov_um, rel=1e-3)
            assert reading.height_um == pytest.approx(fov_um, rel=1e-3)
            assert (reading.x_um, reading.y_um) == pytest.approx((500 * MPP, 300 * MPP), abs=0.1)


@pytest.mark.parametrize("extra", [1, 3])
def test_a_wrong_scale_and_a_shift_are_seen(ruler, extra):
    wider = read_ruler(ruler[400 + extra : 848 + extra, 400 : 848 + extra], EXTENT_UM)
    assert wider.width_um == pytest.approx((448 + extra) * MPP, rel=4e-4)
    assert wider.y_um == pytest.approx((400 + extra) * MPP, abs=0.05)


def test_means_of_all_channels_are_exact(ruler):
    at_um = (1000.5 * MPP, 50.5 * MPP)  # one column near the top, averaged along the steep axis's other one
    red = ruler[:, 1000, 0].mean()
    green = ruler[50, :, 1].mean()
    assert red == pytest.approx(24 + 208 * at_um[0] / EXTENT_UM[0], abs=0.1)
    assert green == pytest.approx(24 + 208 * at_um[1] / EXTENT_UM[1], abs=0.1)
    blue = ruler[:, 1000, 2].mean()
    assert blue == pytest.approx(90 + 30 * np.cos(2 * np.pi * at_um[0] / WAVE_UM), abs=0.2)


def test_refusals(ruler):
    with pytest.raises(UsageError, match="ruler of 0x10"):
        paint_ruler(0.5, (0, 10))
    with pytest.raises(UsageError, match="too small"):
        read_ruler(np.zeros((1, 8, 3), np.uint8), (10.0, 10.0))
    with pytest.raises(UsageError, match="no ruler"):
        read_ruler(np.ascontiguousarray(ruler[:200, 200:0:-1]), EXTENT_UM)
