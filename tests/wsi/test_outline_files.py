"""Outlines and masks that somebody made: read in all their forms, taken as they are, refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.measure import points_in_poly

from histotl.core.errors import OutlineError, UsageError
from histotl.core.registry import create
from histotl.core.values import SlideInfo
from histotl.embed._plan import source_digest
from histotl.embed.config import TileConfig
from histotl.wsi.mask import TissueMask, find_tissue, to_geojson
from histotl.wsi.slide import Slide, open_array
from histotl.wsi.tissue._geojson import Area, draw, read_areas
from histotl.wsi.tissue.from_geojson import FromGeojson
from histotl.wsi.tissue.from_mask import FromMask
from histotl.wsi.tissue.hysteresis import Hysteresis

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]

SQUARE = [[100, 100], [900, 100], [900, 700], [100, 700], [100, 100]]
HOLE = [[300, 300], [340, 300], [340, 340], [300, 340], [300, 300]]
FAR = [[1000, 100], [1400, 100], [1400, 300], [1000, 300], [1000, 100]]


@pytest.fixture
def slide() -> Slide:
    """Glass of 1600 x 1200 px at 2 µm/px."""
    return open_array(np.full((1200, 1600, 3), 240, np.uint8), mpp=2.0, slide_id="s1")


def feature(kind: str, coordinates: Any, name: str | None = None) -> dict[str, Any]:
    properties = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def written(folder: Path, found: Any, name: str = "s1.geojson") -> Path:
    path = folder / name
    path.write_text(json.dumps(found))
    return path


def found(slide: Slide, spec: str) -> TissueMask:
    finder: Any = create("tissue", spec)
    return find_tissue(slide, finder, min_area_um2=1e6, max_hole_um2=1e9)


def area_mm2(width: float, height: float) -> float:
    return width * height * 4 / 1e6


RINGS = st.lists(hnp.arrays(np.float64, (7, 2), elements=st.floats(-3, 15, width=32)), min_size=1, max_size=3)


@settings(deadline=None)
@given(RINGS)
def test_pixels_whose_centres_lie_inside_an_odd_number_of_rings(rings: list[Ring]) -> None:
    rows, columns = np.mgrid[:11, :13] + 0.5
    # Shifted, so that no centre lies on a line or at the height of a corner.
    rings = [ring + np.array([0.0317, 0.0173]) for ring in rings]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = sum(points_in_poly(centres, ring).astype(int) for ring in rings) % 2 == 1
    area = Area(name="", rings=tuple(ring * (2, 3) for ring in rings))
    np.testing.assert_array_equal(draw([area], (11, 13), (2.0, 3.0)), inside.reshape(11, 13))


def test_every_form_of_geojson_gives_the_same(tmp_path: Path, slide: Slide) -> None:
    polygon = feature("Polygon", [SQUARE, HOLE])
    geometry = polygon["geometry"]
    forms = [
        {"type": "FeatureCollection", "features": [polygon]},
        [polygon],
        polygon,
        geometry,
        feature("MultiPolygon", [[SQUARE, HOLE]]),
        {"type": "GeometryCollection", "geometries": [geometry, {"type": "Point", "coordinates": [1, 2]}]},
        [polygon, feature("Point", [3, 4]), {"type": "Feature", "geometry": None, "properties": None}],
        [feature("Polygon", [SQUARE[:-1], HOLE[:-1]])],  # not closed
        [feature("Polygon", [[[*point, 0] for point in SQUARE], HOLE])],  # with a height
    ]
    for form in forms:
        path = written(tmp_path, form)
        mask = found(slide, f"from_geojson(path={str(path)!r}, mpp=4.0)")
        assert mask.area_mm2 == pytest.approx(area_mm2(800, 600) - area_mm2(40, 40)), form


def test_holes_and_small_pieces_are_kept_whatever_the_clean_up(tmp_path: Path, slide: Slide) -> None:
    path = written(
        tmp_path,
        [feature("Polygon", [SQUARE, HOLE]), feature("Polygon", [[[1500, 50], [1510, 50], [1510, 60], [1500, 60]]])],
    )
    mask = found(slide, f"from_geojson(path={str(path)!r}, mpp=2.0)")
    assert not mask.mask[320, 320]
    assert mask.mask[55, 1505]
    assert len(mask.polygons) == 2


def test_classes_are_chosen_and_left_out(tmp_path: Path, slide: Slide) -> None:
    inner = [[400, 400], [500, 400], [500, 500], [400, 500]]
    written(
        tmp_path,
        [
            feature("Polygon", [SQUARE], "Tumor"),
            feature("Polygon", [FAR], "Stroma"),
            feature("Polygon", [inner], "Fold"),
        ],
    )
    spec = f"from_geojson(path={str(tmp_path)!r}, mpp=2.0"
    assert found(slide, f"{spec}, classes=('Tumor',))").area_mm2 == pytest.approx(area_mm2(800, 600))
    assert found(slide, f"{spec}, classes=('Tumor', 'Stroma'))").area_mm2 == pytest.approx(
        area_mm2(800, 600) + area_mm2(400, 200)
    )
    cut = found(slide, f"{spec}, classes=('Tumor',), leave_out=('Fold',))")
    assert cut.area_mm2 == pytest.approx(area_mm2(800, 600) - area_mm2(100, 100))
    everything_else = found(slide, f"{spec}, leave_out=('Fold', 'Stroma'))")
    assert everything_else.area_mm2 == pytest.approx(cut.area_mm2)


def test_an_old_classification_is_a_text(tmp_path: Path) -> None:
    old = {**feature("Polygon", [SQUARE]), "properties": {"classification": "Tumor"}}
    assert [area.name for area in read_areas(written(tmp_path, [old]))] == ["Tumor"]


def test_an_outline_that_crosses_itself_encloses_its_loops(tmp_path: Path, slide: Slide) -> None:
    bow_tie = [[100, 100], [500, 500], [500, 100], [100, 500], [100, 100]]
    path = written(tmp_path, [feature("Polygon", [bow_tie])])
    mask = found(slide, f"from_geojson(path={str(path)!r}, mpp=2.0)")
    assert mask.area_mm2 == pytest.approx(area_mm2(400, 200), rel=0.01)
    assert mask.mask[200, 130]
    assert not mask.mask[130, 300]


def test_outlines_beyond_the_slide_are_cut(tmp_path: Path, slide: Slide) -> None:
    path = written(tmp_path, [feature("Polygon", [[[-500, -500], [100, -500], [100, 100], [-500, 100]]])])
    assert found(slide, f"from_geojson(path={str(path)!r}, mpp=2.0)").area_mm2 == pytest.approx(area_mm2(100, 100))


def test_outlines_of_the_scanned_area_are_moved(tmp_path: Path, slide: Slide) -> None:
    path = written(tmp_path, [feature("Polygon", [SQUARE])])
    info = replace(slide.info, bounds_l0=(300, 200, 1300, 1000))
    drawn, moved = (
        FromGeojson(path=str(path), origin=origin).mask(info, (1200, 1600)) for origin in ("slide", "bounds")
    )
    np.testing.assert_array_equal(moved, np.roll(drawn, (200, 300), (0, 1)))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    image = np.full((1200, 1600, 3), 240, np.uint8)
    y, x = np.mgrid[:1200, :1600]
    image[(x - 700) ** 2 + (y - 600) ** 2 < 400**2] = (170, 90, 150)
    image[(x - 600) ** 2 + (y - 500) ** 2 < 150**2] = 240
    slide = open_array(image, mpp=2.0, slide_id="s1")
    first = find_tissue(slide, Hysteresis(), min_area_um2=1e3, max_hole_um2=1e3)
    (tmp_path / "s1.geojson").write_text(to_geojson(first, name="s1"))
    again = found(slide, f"from_geojson(path={str(tmp_path)!r}, mpp=8.0)")
    assert (first.mask & again.mask).sum() / (first.mask | again.mask).sum() > 0.97


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("{", "cannot be read"),
        ('{"a": 1}', "not GeoJSON"),
        ("[]", "has no areas"),
        (json.dumps([feature("Point", [1, 2])]), "has no areas"),
        (json.dumps([feature("Polygon", [[[0, 0], [1, 1]]])]), "a ring has 2 points"),
        (json.dumps([feature("Polygon", [[[0, 0], [1, None], [2, 2]]])]), "feature 0: "),
        (json.dumps([feature("Polygon", [["a", "b", "c"]])]), "feature 0: its coordinates are not numbers"),
        (json.dumps([feature("Polygon", [])]), "without rings"),
        (json.dumps([feature("Polygon", None)]), "feature 0: "),
        (json.dumps([feature("Sphere", [SQUARE])]), "'Sphere', not a polygon"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, slide: Slide, content: str, fact: str) -> None:
    path = tmp_path / "s1.geojson"
    path.write_text(content)
    with pytest.raises(OutlineError, match=fact) as caught:
        found(slide, f"from_geojson(path={str(path)!r})")
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_unknown_classes_and_missing_files_are_named(tmp_path: Path, slide: Slide) -> None:
    written(tmp_path, [feature("Polygon", [SQUARE], "Tumor")])
    with pytest.raises(OutlineError, match=r"no area of class 'Tumour'; it has 'Tumor'"):
        found(slide, f"from_geojson(path={str(tmp_path)!r}, classes=('Tumour',))")
    other = open_array(np.full((50, 50, 3), 240, np.uint8), mpp=2.0, slide_id="other")
    with pytest.raises(OutlineError, match=r"no other\.geojson or other\.json"):
        found(other, f"from_geojson(path={str(tmp_path)!r})")
    with pytest.raises(OutlineError, match=r"no other\.png or "):
        found(other, f"from_mask(path={str(tmp_path)!r})")


@pytest.mark.parametrize(
    ("spec", "fact"),
    [
        ("from_geojson(path='no/such/folder')", "no such file"),
        ("from_geojson(path='.', classes='Tumor')", "classes='Tumor' is not tuple"),
        ("from_geojson(path='.', mpp=0)", "mpp is 0"),
        ("from_geojson(path='.', origin='corner')", "origin='corner' is not"),
        ("from_mask(path='no/such/folder')", "no such file"),
        ("from_mask(path='.', labels=1)", "labels=1 is not tuple"),
        ("from_mask(path='.', mpp=-1)", "mpp is -1"),
    ],
)
def test_wrong_settings_are_refused_before_any_slide(spec: str, fact: str) -> None:
    with pytest.raises(UsageError) as caught:
        create("tissue", spec)
    assert re.search(fact, f"{caught.value} {caught.value.hint}")


def levels() -> npt.NDArray[np.uint8]:
    """Labels 1 and 2 on 0, at a quarter of the slide's scale."""
    picture = np.zeros((300, 400), np.uint8)
    picture[50:150, 100:300] = 1
    picture[200:250, 100:300] = 2
    return picture


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("mpp", [4.0, 8.0, 16.0])
def test_masks_of_any_scale(tmp_path: Path, slide: Slide, suffix: str, mpp: float) -> None:
    path = tmp_path / f"s1{suffix}"
    np.save(path, levels()) if suffix == ".npy" else Image.fromarray(levels()).save(path)
    spec = f"from_mask(path={str(tmp_path)!r}, mpp={mpp}"
    assert found(slide, f"{spec})").area_mm2 == pytest.approx(area_mm2(800, 400) + area_mm2(800, 200), rel=0.03)
    assert found(slide, f"{spec}, labels=(2,))").area_mm2 == pytest.approx(area_mm2(800, 200), rel=0.06)


def test_masks_that_are_none_are_named(tmp_path: Path, slide: Slide) -> None:
    path = tmp_path / "s1.png"
    spec = f"from_mask(path={str(path)!r})"
    path.write_bytes(b"\x89PNG broken")
    with pytest.raises(OutlineError, match="cannot be read"):
        found(slide, spec)
    Image.fromarray(levels()[:200]).save(path)
    with pytest.raises(OutlineError, match="400x200 px, which is not the shape of a slide of 1600x1200 px"):
        found(slide, spec)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(path)
    with pytest.raises(OutlineError, match="one whole number a pixel"):
        found(slide, spec)
    Image.fromarray(np.repeat(levels()[..., None] * 100, 3, 2)).save(path)
    assert found(slide, spec).area_mm2 > 0


def test_a_changed_file_is_another_source(tmp_path: Path, slide: Slide) -> None:
    def digest() -> str:
        return source_digest(info, TileConfig(), finder)

    info: SlideInfo = slide.info
    path = written(tmp_path, [feature("Polygon", [SQUARE])])
    finder: FromGeojson | FromMask = FromGeojson(path=str(tmp_path))
    before = digest()
    assert digest() == before
    path.write_text(json.dumps([feature("Polygon", [FAR])]))
    assert digest() != before
