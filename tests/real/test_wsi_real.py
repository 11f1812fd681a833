"""Real slides, good and odd: each gets its right answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histotl.core.errors import (
    MppError,
    NotBrightfieldError,
    SlideError,
    SlideOpenError,
    SlideReadError,
    UpsamplingError,
)
from histotl.core.values import TileSpec
from histotl.wsi.manifest import load_manifest
from histotl.wsi.mask import find_tissue
from histotl.wsi.slide import open_slide
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tiling import plan_tiles
from histotl.wsi.tissue.hysteresis import Hysteresis


@pytest.fixture
def slides(real_data: Path) -> Path:
    return real_data / "slides"


def test_svs_gives_tissue_tiles(slides: Path) -> None:
    with open_slide(slides / "cmu-1-small-region.svs") as slide:
        assert (slide.info.mpp, slide.info.vendor) == (0.499, "aperio")
        mask = find_tissue(slide, Hysteresis(), min_area_um2=10_000, max_hole_um2=50_000)
        assert len(mask.polygons) == 1, "the dirt beside the tissue is left out"
        assert mask.area_mm2 == pytest.approx(0.67, abs=0.05)
        grid = plan_tiles(slide.info, TileSpec(), mask.mask, mask.scale_l0)
        assert 45 <= len(grid) <= 60
        assert grid.footprint_l0[0] == pytest.approx(224 * 0.5 / 0.499)
        tiles = read_tiles(slide, grid, slice(None))
    assert tiles.mean() < 225
    assert tiles.std() > 20


def test_dicom_at_its_own_scale(slides: Path) -> None:
    with open_slide(slides / "multiframe_camelyon_challenge_image.dcm") as slide:
        assert slide.info.mpp_x == pytest.approx(28.969)
        with pytest.raises(UpsamplingError) as caught:
            plan_tiles(slide.info, TileSpec(mpp=0.5))
        assert "--mpp 29" in caught.value.hint
        mask = find_tissue(slide, Hysteresis(), min_area_um2=10_000, max_hole_um2=50_000)
        assert mask.mask.mean() == pytest.approx(0.28, abs=0.05)
        grid = plan_tiles(slide.info, TileSpec(mpp=29, min_tissue=0.25), mask.mask, mask.scale_l0)
        assert len(grid) >= 6
        assert read_tiles(slide, grid, slice(0, 2)).shape == (2, 224, 224, 3)


def test_plain_tiff_works_once_it_has_a_pixel_size(slides: Path) -> None:
    with pytest.raises(MppError, match="does not say its pixel size"):
        open_slide(slides / "kidney-48-5.tif")
    with open_slide(slides / "kidney-48-5.tif", mpp=8.0) as slide:
        assert slide.info.reader == "image"
        mask = find_tissue(slide, Hysteresis(), min_area_um2=10_000, max_hole_um2=50_000)
        (piece,) = mask.polygons
        assert piece.exterior.min(0) == pytest.approx([284, 503], abs=15)
        assert piece.exterior.max(0) == pytest.approx([401, 566], abs=15)
        grid = plan_tiles(slide.info, TileSpec(tile_px=64, mpp=8.0), mask.mask, mask.scale_l0)
        assert len(grid) >= 1
        assert read_tiles(slide, grid, slice(None)).mean() < 245
    with open_slide(slides / "target_image.png", mpp=0.5) as slide:
        mask = find_tissue(slide, Hysteresis(), min_area_um2=10_000, max_hole_um2=50_000)
        assert mask.mask.mean() > 0.95
        assert len(plan_tiles(slide.info, TileSpec(), mask.mask, mask.scale_l0)) == 16


@pytest.mark.parametrize(
    ("name", "kind", "fact"),
    [
        ("boxes.tiff", MppError, "pixel size 352.778 x 352.778 µm (tiff.XResolution) is outside 0.05-50"),
        ("test3-DAPI-2-387.ndpi", NotBrightfieldError, "not brightfield RGB"),
        ("broken.svs", SlideOpenError, "openslide: Unsupported or missing image file; image: does not claim .svs"),
        ("unopenable.tiff", SlideOpenError, "openslide: Unsupported TIFF compression: 52479; image: unknown TIFF"),
    ],
)
def test_odd_files_are_refused_with_the_cure(slides: Path, name: str, kind: type[SlideError], fact: str) -> None:
    with pytest.raises(kind) as caught:
        open_slide(slides / name)
    assert fact in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_slide_that_opens_but_cannot_be_read(slides: Path) -> None:
    with open_slide(slides / "unreadable.svs") as slide:
        for _ in range(2):
            with pytest.raises(SlideReadError, match="Bogus marker length"):
                slide.thumbnail(8.0)


def test_the_folder_as_a_manifest(slides: Path) -> None:
    assert len(load_manifest(slides)) == 9


def test_patches_of_many_patients_are_brightfield(real_data: Path) -> None:
    """White balance and stain vary widely in this set; none of it is fluorescence."""
    paths = sorted((real_data / "ebhi").rglob("*.jpg"))[::40]
    assert len(paths) > 10
    for path in paths:
        with open_slide(path, mpp=0.5) as slide:
            pixels = slide.read(0, 0, (224, 224), 224)
        assert np.ptp(pixels) > 50
