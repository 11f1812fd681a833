"""The plan is balanced, the files are there, and the table tells the truth."""

import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import openslide
import pytest
from PIL import Image

from histotl.core.errors import UsageError
from histotl.paint.cohort import PaintConfig, paint_cohort
from histotl.paint.plan import COLUMNS, plan_cohort
from histotl.paint.values import DYSPLASIA, TYPES


def rows_of(table):
    with table.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_default_plan_is_balanced_over_types_sites_and_splits():
    plan = [slide for slide in plan_cohort(PaintConfig()) if slide.split != "ood"]
    first = {slide.patient: slide for slide in plan}
    assert len(first) == 36
    assert len(plan) == 40
    assert Counter(s.type for s in first.values()) == dict.fromkeys(TYPES, 12)
    assert Counter(s.site for s in first.values()) == {"A": 18, "B": 18}
    grades = Counter((s.recipe.lesion, s.site) for s in first.values() if s.type == "adenoma")
    assert set(grades.values()) == {3}
    for split in ("train", "val", "test"):
        part = [s for s in first.values() if s.split == split]
        assert {s.type for s in part} == set(TYPES)
        assert {s.site for s in part} == {"A", "B"}
        assert {s.dysplasia for s in part} >= set(DYSPLASIA)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("patients", [24, 36, 61])
def test_laws_of_every_plan(patients, seed):
    config = PaintConfig(patients=patients, seed=seed)
    plan = plan_cohort(config)
    assert len({s.recipe.slide_id for s in plan}) == len(plan)
    assert len({s.stream for s in plan}) == len(plan)
    splits = {}
    for s in plan:
        assert splits.setdefault(s.patient, s.split) == s.split
        lesion = s.recipe.lesion or "none"
        if s.split != "ood":
            assert {"normal": "none", "serrated": "serrated"}.get(s.type, f"adenoma_{lesion[8:]}") == lesion
            assert s.dysplasia in {"", lesion.removeprefix("adenoma_") if s.type == "adenoma" else "none"}
    missing = {s.patient for s in plan if s.split != "ood" and not s.dysplasia}
    assert len(missing) == round(config.missing_dysplasia * patients)
    marks = Counter(mark for s in plan for mark in s.recipe.artefacts)
    assert min(marks[m] for m in ("pen", "fold", "blur")) >= 1
    assert plan_cohort(config) == plan


def test_bubbles_come_when_asked_for_and_leave_all_else_as_it_is():
    without, with_some = (plan_cohort(PaintConfig(patients=20, bubble_share=share)) for share in (0.0, 0.25))
    bubbles = [s for s in with_some if "bubble" in s.recipe.artefacts]
    slides = [s for s in with_some if s.split != "ood"]
    assert len(bubbles) == round(0.25 * len(slides))
    for one, other in zip(without, with_some, strict=True):
        marks = tuple(mark for mark in other.recipe.artefacts if mark != "bubble")
        assert replace(other, recipe=replace(other.recipe, artefacts=marks)) == one


def test_names_begin_as_asked_and_the_table_tells_the_labels_that_are_wanted():
    plan, told = plan_cohort(PaintConfig()), plan_cohort(PaintConfig(prefix="N", labels=("type",)))
    for one, other in zip(plan, told, strict=True):
        assert (other.type, other.dysplasia, other.row()["tissue"]) == (one.type, "", one.row()["tissue"])
        if one.split != "ood":
            assert (other.patient, other.recipe.slide_id) == ("N" + one.patient[1:], "N" + one.recipe.slide_id[1:])
        recipe = replace(other.recipe, slide_id=one.recipe.slide_id)
        assert replace(other, recipe=recipe, patient=one.patient, dysplasia=one.dysplasia) == one
    untyped = [s.row() for s in plan_cohort(PaintConfig(labels=("dysplasia",))) if s.split != "ood"]
    assert {row["type"] for row in untyped} == {""}
    assert {row["tissue"] for row in untyped} == {"colon"}
    assert {row["dysplasia"] for row in untyped} >= set(DYSPLASIA)


def test_files_and_table(small_cohort, small_config):
    rows = rows_of(small_cohort)
    assert tuple(rows[0]) == COLUMNS
    assert [r["split"] for r in rows].count("ood") == 1
    assert len(rows) == 5
    for row in rows:
        path = small_cohort.parent / row["path"]
        tissue = np.asarray(Image.open(small_cohort.parent / "truth" / f"{row['slide_id']}.tissue.png"))
        with openslide.OpenSlide(path) as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(small_config.mpp, rel=1e-3)
            assert slide.dimensions == tissue.shape[::-1]
            assert slide.level_count == 3
    assert not list(small_cohort.parent.rglob("*.part"))


def test_geojson_names_the_worst_lesion(small_cohort):
    for row in rows_of(small_cohort):
        text = (small_cohort.parent / "truth" / f"{row['slide_id']}.geojson").read_text(encoding="utf-8")
        features = json.loads(text)["features"]
        names = {f["properties"]["classification"]["name"] for f in features if f["properties"]["kind"] == "tissue"}
        lesions = names - {"normal"}
        if row["split"] == "ood":
            assert names == {row["tissue"]}
        elif row["type"] == "normal":
            assert not lesions
        else:
            assert len(lesions) == 1
            assert lesions.pop().startswith(row["type"])
        marks = {f["properties"]["classification"]["name"] for f in features if f["properties"]["kind"] == "artefact"}
        assert marks <= set(row["artefacts"].split(";"))
        for feature in features:
            for ring in feature["geometry"]["coordinates"]:
                assert len(ring) >= 4
                assert ring[0] == ring[-1]


def test_workers_do_not_change_a_byte(small_cohort, small_config, tmp_path):
    steps = []
    table = paint_cohort(tmp_path, replace(small_config, workers=2), report=steps.append)
    assert table.read_bytes() == small_cohort.read_bytes()
    for path in small_cohort.parent.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(small_cohort.parent)).read_bytes()
    assert [(s.stage, s.done, s.total) for s in steps] == [("paint", i, 5) for i in range(1, 6)]
    assert {s.item for s in steps} == {r["slide_id"] for r in rows_of(table)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "patients is 0"),
        ({"mpp": 0.0}, "mpp is 0.0"),
        ({"missing_dysplasia": 1.5}, "missing_dysplasia is 1.5"),
        ({"artefact_share": -0.1}, "artefact_share is -0.1"),
        ({"second_slides": -1}, "second_slides is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"foreign": ("liver",)}, "no foreign tissue is called 'liver'"),
        ({"foreign": ("brown", "brown")}, "twice"),
        ({"size_um": (900.0, 100.0)}, "too small"),
        ({"prefix": "a/b"}, "becomes part of file names"),
        ({"labels": ("grade",)}, "labels are"),
        ({"labels": ()}, "labels are"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UsageError, match=message):
        replace(PaintConfig(), **change)
