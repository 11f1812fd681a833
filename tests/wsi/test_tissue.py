"""Tissue is found, pale or dark; glass, shadows, dirt, borders and ink are not. Masks and outlines agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.draw import polygon2mask

from histotl.core.errors import UsageError
from histotl.wsi.mask import Polygon, TissueMask, clean, find_tissue, outlines, to_geojson
from histotl.wsi.pyramid import write_pyramid
from histotl.wsi.slide import open_array, open_slide
from histotl.wsi.tissue.hysteresis import Hysteresis

Pixels = npt.NDArray[np.uint8]
Stained = Callable[..., Pixels]
MPP = 8.0


def glass(height: int = 200, width: int = 260, colour: tuple[float, ...] = (242, 241, 243), sd: float = 1.5) -> Pixels:
    rng = np.random.default_rng(1)
    return np.clip(rng.normal(colour, sd, (height, width, 3)), 0, 255).astype(np.uint8)


def segment(image: Pixels, mpp: float = MPP) -> npt.NDArray[np.bool_]:
    return Hysteresis().segment(image, mpp)


BLOCK = (slice(60, 140), slice(80, 180))


def iou(mask: npt.NDArray[np.bool_], block: tuple[slice, slice] = BLOCK) -> float:
    truth = np.zeros(mask.shape, bool)
    truth[block] = True
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("strength", [0.15, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("colour", [(242, 241, 243), (255, 255, 255), (228, 222, 230), (200, 205, 190)])
def test_pale_and_dark_tissue_is_found_on_any_glass(
    stained: Stained, strength: float, colour: tuple[float, ...]
) -> None:
    image = glass(colour=colour)
    image[BLOCK] = stained(80, 100, strength=strength, glass=float(np.mean(colour)))
    assert iou(segment(image)) > 0.85


def test_one_piece_of_dark_tissue_does_not_hide_a_pale_one(stained: Stained) -> None:
    image = glass()
    image[BLOCK] = stained(80, 100, strength=3.0)
    image[150:190, 20:120] = stained(40, 100, strength=0.15)
    assert segment(image)[155:185, 25:115].mean() > 0.9


@pytest.mark.parametrize("quality", [70, 85])
def test_colour_that_jpeg_spreads_over_glass_is_no_tissue(quality: int) -> None:
    image = glass()
    image[BLOCK] = (150, 90, 75)  # brown: the glass around it becomes pink, and lighter than glass in red
    coded = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="420")
    assert iou(segment(simplejpeg.decode_jpeg(coded))) > 0.98


@pytest.mark.parametrize("sd", [0.0, 1.5, 4.0, 8.0])
@pytest.mark.parametrize("level", [200, 242, 255])
def test_empty_glass_is_empty(sd: float, level: float) -> None:
    assert segment(glass(colour=(level,) * 3, sd=sd)).mean() < 0.002


def test_shadow_dirt_and_borders_are_no_tissue(stained: Stained) -> None:
    image = glass().astype(float)
    image[:, :30] *= np.linspace(0.35, 1.0, 30)[:, None]  # the slide's edge, grey
    image[170:176] *= 0.6  # edge of the cover slip
    yy, xx = np.mgrid[:200, :260]
    image[np.hypot(yy - 30, xx - 220) < 9] *= 0.5  # bubble, dust
    image = np.clip(image, 0, 255).astype(np.uint8)
    image[:, 240:] = 0  # never scanned
    image[BLOCK] = stained(80, 100)
    assert iou(segment(image)) > 0.85


def test_coloured_fringe_along_the_border_is_dropped(stained: Stained) -> None:
    image = glass()
    image[:, :2] = (200, 150, 190)
    image[BLOCK] = stained(80, 100)
    mask = segment(image)
    assert not mask[:, :3].any()
    assert iou(mask) > 0.85


def test_tissue_that_reaches_the_border_stays(stained: Stained) -> None:
    image = glass()
    image[:100, :90] = stained(100, 90)
    assert iou(segment(image), (slice(0, 100), slice(0, 90))) > 0.9


def test_a_slide_without_glass_is_tissue(stained: Stained) -> None:
    assert segment(stained(150, 150)).mean() > 0.98


@pytest.mark.parametrize("ink", [(30, 170, 70), (60, 190, 110), (30, 60, 180), (25, 25, 28)])
def test_ink_is_no_tissue(stained: Stained, ink: tuple[int, int, int]) -> None:
    image = glass()
    image[20:40, 10:250] = ink
    image[BLOCK] = stained(80, 100)
    mask = segment(image)
    assert mask[22:38, 15:245].mean() < 0.05
    assert iou(mask) > 0.85


def test_haematoxylin_alone_and_brown_are_not_taken_for_ink(stained: Stained) -> None:
    for absorption in ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78)):
        rng = np.random.default_rng(0)
        image = glass()
        density = rng.gamma(3.0, 0.25, (80, 100, 1))
        image[BLOCK] = (242 * 10 ** (-density * absorption)).astype(np.uint8)
        assert iou(segment(image)) > 0.85, absorption


@pytest.mark.parametrize("mpp", [4.0, 8.0, 29.0])
def test_works_in_micrometres(stained: Stained, mpp: float) -> None:
    """The same 640 x 800 µm piece at three resolutions."""
    side = round(1600 / mpp)
    image = glass(side, side)
    block = (slice(round(480 / mpp), round(1120 / mpp)), slice(round(400 / mpp), round(1200 / mpp)))
    image[block] = stained(block[0].stop - block[0].start, block[1].stop - block[1].start)
    assert iou(segment(image, mpp), block) > 0.75


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    assert segment(np.full((*shape, 3), 240, np.uint8)).shape == shape


def test_settings_far_from_the_default_are_kept(stained: Stained) -> None:
    image = glass()
    image[BLOCK] = stained(80, 100, strength=3.0)
    image[150:190, 20:120] = stained(40, 100, strength=0.3)
    mask = Hysteresis(sure=0.4, pale=0.3).segment(image, MPP)
    assert iou(mask) > 0.75
    assert not mask[150:190, 20:120].any()


# --- large slides, which are seen more coarsely ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(stained: Stained) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """A picture of 2.1 megapixels and odd sides with one large piece, islands and holes, and where its tissue is."""
    height, width = 1401, 1503
    field = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(height, width)), 25)
    y, x = np.mgrid[:height, :width]
    truth = (field > -0.4 * field.std()) & (np.hypot(y - height / 2, x - width / 2) < 640)
    image = glass(height, width)
    image[truth] = stained(height, width)[truth]
    return image, truth


def agreement(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def found(image: Pixels) -> TissueMask:
    return find_tissue(open_array(image, mpp=MPP), Hysteresis(), min_area_um2=0, max_hole_um2=0)


def in_full(mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A mask of cells of 2 x 2 pixels, in pixels; the odd last row and column are like their neighbours."""
    return np.pad(mask.repeat(2, 0).repeat(2, 1), ((0, 1), (0, 1)), mode="edge")[: shape[0], : shape[1]]


def test_large_slides_get_the_mask_that_small_ones_get(
    large: tuple[Pixels, npt.NDArray[np.bool_]], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, truth = large
    coarse = found(image)
    assert coarse.mask.shape == (700, 751)
    assert coarse.scale_l0 == pytest.approx((2, 2), rel=2e-3)
    monkeypatch.setattr("histotl.wsi.tissue.hysteresis._FINE_PX", 10**9)
    fine = found(image)
    assert fine.mask.shape == truth.shape
    mask = in_full(coarse.mask, truth.shape)
    assert agreement(mask, fine.mask) > 0.98
    assert agreement(mask, truth) > agreement(fine.mask, truth) - 0.01
    assert agreement(mask, truth) > 0.95
    assert coarse.area_mm2 == pytest.approx(fine.area_mm2, rel=0.01)


@pytest.mark.parametrize("decode", ["auto", "openslide"])
def test_a_level_is_halved_tile_by_tile_or_as_a_whole_with_equal_results(tmp_path: Path, decode: str) -> None:
    image = np.random.default_rng(5).integers(0, 256, (601, 515, 3), np.uint8)
    path = write_pyramid(tmp_path / "a.tiff", image, mpp=MPP, levels=(1,), tile_px=128)
    with open_slide(path, reader=f"openslide(decode={decode!r})") as slide:
        assert (slide.tiled(0) is None) == (decode == "openslide")
        whole = slide.whole_level(0)
        assert whole.shape == image.shape
        means = whole[:600, :514].reshape(300, 2, 257, 2, 3).astype(np.int64).sum((1, 3))
        np.testing.assert_array_equal(slide.whole_level(0, 2), (means + 2) // 4)


def test_a_tiny_level_is_not_shrunk_to_nothing() -> None:
    assert open_array(glass(1, 3), mpp=MPP).whole_level(0, 2).shape == (1, 1, 3)


def test_large_slides_leave_out_the_same(large: tuple[Pixels, npt.NDArray[np.bool_]]) -> None:
    image, truth = large[0].copy(), large[1]
    image[:, :12] = 0  # never scanned
    image[-4:] = (200, 150, 190)  # fringe of the slide's edge
    image[300:330, 60:1460] = (30, 60, 180)  # blue ink
    image[500:530, 60:1460] = (25, 25, 28)  # black ink
    image[20:50, 100:140] = 120  # dust
    mask = in_full(found(image).mask, truth.shape)
    assert not mask[:, :10].any()
    assert not mask[-4:].any()
    assert mask[304:326, 70:1450].mean() < 0.02
    assert mask[504:526, 70:1450].mean() < 0.02
    assert not mask[20:50, 100:140].any()
    clear = np.ones(mask.shape, bool)
    for rows in (slice(280, 350), slice(480, 550)):
        clear[rows] = False
    assert agreement(mask & clear, truth & clear) > 0.95
    pale = image.copy()
    pale[700:760, 2:60] = pale[700:760, 2:60] * np.array([0.95, 0.92, 0.97])  # pale and far from sure tissue
    assert not in_full(found(pale).mask, truth.shape)[705:755, 20:50].any()


def test_long_narrow_pictures(stained: Stained) -> None:
    image = np.concatenate([stained(3, 300_000), glass(3, 300_000)], axis=1)
    assert segment(image).shape == (3, 600_000)


# --- clean-up and outlines -------------------------------------------------------------------------------------------


MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))


@settings(deadline=None)
@given(MASKS, st.integers(0, 12), st.integers(0, 12))
def test_clean_keeps_its_word(mask: npt.NDArray[np.bool_], area: int, hole: int) -> None:
    result = clean(mask, min_area_px=area, max_hole_px=hole)
    labels, count = ndimage.label(result, np.ones((3, 3)))
    assert all((labels == index).sum() >= area for index in range(1, count + 1))
    gaps, count = ndimage.label(~result)
    inner = set(range(1, count + 1)) - set(np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]]).tolist())
    assert all((gaps == index).sum() > hole for index in inner if not (mask[gaps == index]).any())
    assert np.array_equal(clean(result, min_area_px=area, max_hole_px=hole), result)
    assert np.array_equal(clean(mask, min_area_px=0, max_hole_px=0), mask)


def rasterise(
    polygons: tuple[Polygon, ...], shape: tuple[int, int], scale: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """Pixels whose centre lies inside the polygons."""
    result = np.zeros(shape, bool)
    for polygon in polygons:
        rings = [(ring / scale)[:, ::-1] - 0.5 for ring in (polygon.exterior, *polygon.holes)]
        inside = polygon2mask(shape, rings[0])
        for hole in rings[1:]:
            inside &= ~polygon2mask(shape, hole)
        result |= inside
    return result


def blobs(seed: int) -> npt.NDArray[np.bool_]:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(90, 120)), 4)
    mask: npt.NDArray[np.bool_] = field > -0.01
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_outlines_draw_the_mask_again(seed: int) -> None:
    mask, scale = blobs(seed), (15.98, 16.03)
    polygons = outlines(mask, scale)
    assert any(polygon.holes for polygon in polygons)
    drawn = rasterise(polygons, mask.shape, scale)
    # They may leave the border by half a pixel, so only pixels at the border may differ.
    border = ndimage.binary_dilation(mask, np.ones((3, 3))) & ~ndimage.binary_erosion(
        mask, np.ones((3, 3)), border_value=1
    )
    assert not ((drawn != mask) & ~border).any()
    assert (drawn != mask).mean() < 0.02
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            assert np.array_equal(ring[0], ring[-1])
            assert len(ring) >= 4


@settings(deadline=None)
@given(MASKS)
def test_every_piece_has_one_outline_and_every_hole_one_ring(mask: npt.NDArray[np.bool_]) -> None:
    polygons = outlines(mask, (2.0, 3.0))
    assert len(polygons) == ndimage.label(mask, np.ones((3, 3)))[1]
    _, count = ndimage.label(~np.pad(mask, 1))
    assert sum(len(polygon.holes) for polygon in polygons) == count - 1
    for polygon in polygons:
        assert (polygon.exterior >= -1e-9).all()
        assert (polygon.exterior <= np.array(mask.shape[::-1]) * (2.0, 3.0) + 1e-9).all()


def test_find_tissue_measures_in_micrometres(stained: Stained) -> None:
    image = glass(800, 1000, colour=(243, 243, 243))
    image[200:600, 300:700] = stained(400, 400)  # 800 x 800 µm
    image[300:360, 400:460] = 243  # a lumen of 120 x 120 µm
    image[700:740, 100:140] = stained(40, 40)  # a crumb of 80 x 80 µm
    slide = open_array(image, mpp=2.0)
    segmenter = Hysteresis(close_um=8.0)
    full = find_tissue(slide, segmenter, min_area_um2=20_000, max_hole_um2=30_000)
    assert full.mask.shape == (200, 250)
    assert full.scale_l0 == (4.0, 4.0)
    assert full.area_mm2 == pytest.approx(0.64, rel=0.06)
    assert [len(polygon.holes) for polygon in full.polygons] == [0]
    bare = find_tissue(slide, segmenter, min_area_um2=1_000, max_hole_um2=3_000)
    assert len(bare.polygons) == 2
    assert len(bare.polygons[0].holes) == 1
    assert bare.polygons[0].exterior.min(0) == pytest.approx([300, 200], abs=6)
    assert bare.polygons[0].exterior.max(0) == pytest.approx([700, 600], abs=6)
    with pytest.raises(UsageError, match="min_area_um2 is -1"):
        find_tissue(slide, segmenter, min_area_um2=-1, max_hole_um2=0)


@pytest.mark.parametrize(("finer", "as_it_is"), [(1.0, True), (1.08, True), (1.25, False)])
def test_a_level_near_what_is_asked_for_is_looked_at_as_it_is(stained: Stained, finer: float, as_it_is: bool) -> None:
    side = round(160 * 10 * finer)
    image = glass(side, side)
    image[side // 4 : side // 2, side // 4 : side // 2] = stained(side // 2 - side // 4, side // 2 - side // 4)
    level = image[::10, ::10]
    slide = open_array(image, mpp=0.8 / finer, levels=(level,))
    found = find_tissue(slide, Hysteresis(), min_area_um2=0, max_hole_um2=0)
    assert found.image is not None
    assert found.image.shape[:2] == found.mask.shape
    assert np.array_equal(found.image, level) == as_it_is
    assert found.area_mm2 == pytest.approx((160 / 4 * 8e-3) ** 2, rel=0.1)


def test_segmenters_that_break_their_word_are_named() -> None:
    class Wrong:
        mpp = 8.0

        def segment(self, image: Pixels, mpp: float) -> npt.NDArray[np.bool_]:
            return np.zeros(image.shape[:2])  # type: ignore[return-value]

    with pytest.raises(UsageError, match="Wrong answered float64"):
        find_tissue(open_array(glass(), mpp=8.0), Wrong(), min_area_um2=0, max_hole_um2=0)


def test_geojson_is_what_qupath_and_trident_write() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:8, 3:9] = True
    mask[4:6, 5:7] = False
    found = TissueMask(mask=mask, scale_l0=(10.0, 10.0), area_mm2=1.0)
    tree = json.loads(to_geojson(found, name="case 7"))
    assert tree["type"] == "FeatureCollection"
    assert tree["name"] == "case 7"
    assert tree["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::3857"
    (feature,) = tree["features"]
    assert feature["properties"]["tissue_id"] == 0
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "Tissue"
    exterior, hole = feature["geometry"]["coordinates"]
    assert exterior[0] == exterior[-1]
    assert {type(number) for ring in (exterior, hole) for point in ring for number in point} == {int}
    assert (min(x for x, _ in exterior), max(x for x, _ in exterior)) == (30, 90)
    assert (min(y for _, y in hole), max(y for _, y in hole)) == (40, 60)
    shifted = json.loads(to_geojson(found, name="x", origin_l0=(30, 20)))
    assert shifted["features"][0]["geometry"]["coordinates"][0][0] == [exterior[0][0] - 30, exterior[0][1] - 20]
    assert json.loads(to_geojson(TissueMask(mask=mask & False, scale_l0=(1, 1), area_mm2=0), name=""))


@pytest.mark.parametrize(
    "wrong",
    [{"mpp": -1.0}, {"mpp": math.nan}, {"pale": 0.1}, {"sure": 0.0}, {"smooth_um": -1.0}, {"close_um": math.nan}],
)
def test_impossible_settings_are_refused_before_any_slide(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        Hysteresis(**wrong)
    assert caught.value.hint
