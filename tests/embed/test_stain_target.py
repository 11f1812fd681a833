"""Targets and fallbacks of stain normalisers, through whole runs."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.core.errors import HistotlError, StainError, UsageError
from histotl.core.registry import canonical, create, identified
from histotl.core.values import SlideEntry
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches
from histotl.embed.stain_target import StainPlan, look_up
from histotl.image.estimate import Estimate, median, read_estimate
from histotl.store.embeddings import Embeddings, open_embeddings
from histotl.wsi.pyramid import write_pyramid

METHODS = ("macenko", "vahadane", "ruifrok", "reinhard", "histogram")


def features(out: Path, name: str) -> Embeddings:
    return open_embeddings(next(out.rglob(f"features_color_stats/{name}.h5")))


def entries(slides: Path) -> list[SlideEntry]:
    return [SlideEntry(path=path, slide_id=path.stem) for path in sorted(slides.iterdir())]


def planned(spec: str, slides: Path, out: Path, tiling: TileConfig) -> StainPlan:
    return look_up(create("stain", spec), entries(slides), tiling, out, lambda step: None, 2)


def stained(config: EmbedConfig, spec: str) -> EmbedConfig:
    return dataclasses.replace(config, stain=spec)


@pytest.fixture
def one_colour(slides: Path) -> Path:
    """A slide among the others whose tissue has one colour."""
    image = np.full((640, 768, 3), 243, np.uint8)
    image[100:540, 100:668] = (150, 90, 160)
    write_pyramid(slides / "flat.tiff", image, mpp=1.0, levels=(1, 4))
    return slides


@pytest.mark.parametrize("method", METHODS)
def test_the_cohort_is_the_median_of_its_slides(method, slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    assert embed_slides(slides, out, tiling=tiling, config=stained(config, f"{method}(target='cohort')")).ok
    (saved,) = (out / "stain").glob(f"{method}-*.json")
    cohort = read_estimate(saved)
    assert cohort.slides == 3
    states = [features(out, name).stain_state for name in "abc"]
    for name, values in cohort.numbers.items():
        np.testing.assert_allclose(values, np.median([state[name] for state in states], axis=0), atol=1e-9)
    identity = features(out, "a").identity
    assert identity is not None
    assert "target=''" in identity.stain  # numbers, not the name of where they came from
    assert identity.stain == identified(planned(f"{method}(target='cohort')", slides, out, tiling).normalizer)
    assert identity.stain != identified(create("stain", method))


def test_slides_that_come_later_go_to_the_same_reference(slides, tmp_path, tiling, config):
    out, later = tmp_path / "out", tmp_path / "later"
    later.mkdir()
    (slides / "c.tiff").rename(later / "c.tiff")
    spec = stained(config, "macenko(target='cohort')")
    assert embed_slides(slides, out, tiling=tiling, config=spec).done == 2
    assert embed_slides(later, out, tiling=tiling, config=spec).done == 1
    a, c = features(out, "a").identity, features(out, "c").identity
    assert a == c
    assert embed_slides(slides, out, tiling=tiling, config=spec).skipped == 2


@pytest.mark.parametrize("kind", ["slide", "image", "saved"])
def test_a_target_is_a_slide_an_image_or_a_saved_stain(kind, slides, tmp_path, tiling):
    out = tmp_path / "out"
    cohort = planned("macenko(target='cohort')", slides, out, tiling).normalizer
    where = {"slide": slides / "a.tiff", "image": tmp_path / "field.png", "saved": next((out / "stain").iterdir())}
    Image.fromarray(_field(slides / "a.tiff")).save(where["image"])
    found = planned(f"macenko(target='{where[kind]}')", slides, out, tiling).normalizer
    if kind == "saved":
        assert found == cohort
    else:
        h = np.array(found.haematoxylin)
        assert np.degrees(np.arccos(min(1.0, h @ np.array(cohort.haematoxylin)))) < 5
        assert found != cohort


def _field(slide: Path) -> np.ndarray:
    from histotl.wsi.slide import open_slide

    with open_slide(slide) as opened:
        return opened.read(256, 192, (256.0, 256.0), 256)


def test_a_slide_that_is_its_own_target_keeps_its_colours(slides, tmp_path, tiling, config):
    spec = f"macenko(target='{slides / 'a.tiff'}')"
    embed_slides(slides / "a.tiff", tmp_path / "same", tiling=tiling, config=stained(config, spec))
    embed_slides(slides / "a.tiff", tmp_path / "plain", tiling=tiling, config=config)
    same, plain = features(tmp_path / "same", "a").read(), features(tmp_path / "plain", "a").read()
    np.testing.assert_allclose(same, plain, atol=2e-3)  # numbers of six digits, levels rounded


@pytest.mark.parametrize(
    ("spec", "fact"),
    [
        ("macenko(target='no/such.svs')", "does not exist"),
        ("macenko(target='{here}/other.json')", "saved by reinhard"),
        ("macenko(target='{here}/broken.json')", "holds no saved stain"),
        ("macenko(target='{here}/glass.png')", "0 of 4096"),
        ("macenko(fallback='maybe')", "fallback is 'maybe'"),
    ],
)
def test_targets_that_cannot_be_used(spec, fact, slides, tmp_path, tiling, config):
    numbers = {"mean": np.zeros(3), "std": np.ones(3)}
    (tmp_path / "other.json").write_text(Estimate(method="reinhard", numbers=numbers).to_json())
    (tmp_path / "broken.json").write_text('{"method": "macenko", "stains": [[NaN]]}')
    Image.new("RGB", (64, 64), (250, 250, 250)).save(tmp_path / "glass.png")
    out = tmp_path / "out"
    with pytest.raises(HistotlError, match=fact) as caught:
        embed_slides(slides, out, tiling=tiling, config=stained(config, spec.format(here=tmp_path)))
    assert caught.value.hint
    assert not list(out.rglob("*.h5"))


def test_without_a_fallback_the_slide_fails_and_says_what_else_there_is(one_colour, tmp_path, tiling, config):
    summary = embed_slides(one_colour, tmp_path / "out", tiling=tiling, config=stained(config, "macenko"))
    assert [failure.slide_id for failure in summary.failed] == ["flat"]
    assert "fallback='skip'" in summary.failed[0].hint
    assert summary.done == 3


def test_skipping_leaves_its_pixels_and_records_why(one_colour, tmp_path, tiling, config):
    out = tmp_path / "out"
    summary = embed_slides(one_colour, out, tiling=tiling, config=stained(config, "macenko(fallback='skip')"))
    assert summary.ok
    assert [(flag.slide_id, flag.flag) for flag in summary.flagged] == [("flat", "stain_fallback")]
    assert "not normalised" in summary.flagged[0].message
    state = features(out, "flat").stain_state
    assert state["fallback"] == "skip"
    assert "one colour" in str(state["reason"])
    embed_slides(one_colour, tmp_path / "plain", tiling=tiling, config=config)
    np.testing.assert_array_equal(features(out, "flat").read(), features(tmp_path / "plain", "flat").read())
    assert "fallback" not in features(out, "a").stain_state
    again = embed_slides(one_colour, out, tiling=tiling, config=stained(config, "macenko(fallback='skip')"))
    assert (again.skipped, len(again.flagged)) == (4, 1)  # still said when there is nothing to do


def test_the_cohorts_stain_stands_in(one_colour, tmp_path, tiling, config):
    out = tmp_path / "out"
    assert embed_slides(one_colour, out, tiling=tiling, config=stained(config, "macenko(fallback='cohort')")).ok
    found = features(out, "flat")
    assert found.stain_state["fallback"] == "cohort"
    cohort = read_estimate(next((out / "stain").iterdir()))
    assert cohort.slides == 3  # the one without a stain does not count
    np.testing.assert_allclose(found.stain_state["stains"], cohort.numbers["stains"])
    assert found.identity is not None
    assert "fallback='cohort:" in found.identity.stain  # the identity says which cohort


def test_a_disk_without_links_keeps_the_cohorts_stain_too(slides, tmp_path, tiling, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("links are not supported")

    wanted = planned("macenko(target='cohort')", slides, tmp_path / "linked", tiling).normalizer
    monkeypatch.setattr("os.link", refuse)
    assert planned("macenko(target='cohort')", slides, tmp_path / "plain", tiling).normalizer == wanted
    (kept,) = (tmp_path / "plain" / "stain").iterdir()  # and no part of it lies beside it
    assert kept.suffix == ".json"


def test_a_cohort_without_a_stain_is_refused(tmp_path, tiling, config):
    slides = tmp_path / "slides"
    slides.mkdir()
    image = np.full((640, 768, 3), 243, np.uint8)
    image[100:540, 100:668] = (150, 90, 160)
    write_pyramid(slides / "flat.tiff", image, mpp=1.0, levels=(1, 4))
    with pytest.raises(StainError, match="no slide"):
        embed_slides(slides, tmp_path / "out", tiling=tiling, config=stained(config, "macenko(target='cohort')"))


def test_patches_have_targets_and_fallbacks_too(patch_set, tmp_path, config):
    name = patch_set.read_text().splitlines()[2].split(",")[0]
    Image.new("RGB", (64, 64), (150, 90, 160)).save(patch_set.parent / name)
    out = tmp_path / "out"
    spec = stained(config, "reinhard(target='cohort', fallback='cohort')")
    assert embed_patches(patch_set, out, config=spec).done == 1
    rows = list(csv.reader((out / "stain" / "manifest-fallbacks.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["patch", name]
    assert "as the cohort is" in rows[1][1]
    (saved,) = (out / "stain").glob("reinhard-*.json")
    assert json.loads(saved.read_text())["slides"] == 11


def test_fitting_before_the_target_is_looked_up_is_refused():
    with pytest.raises(UsageError, match="has not been looked up"):
        create("stain", "macenko(target='cohort')").fit(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_stain_comes_back(method, tmp_path):
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(40, 200, (2, 64, 64, 3), dtype=np.uint8))
    found = create("stain", method).estimate(tiles)
    (tmp_path / "s.json").write_text(found.to_json())
    again = read_estimate(tmp_path / "s.json")
    for name, values in found.numbers.items():
        np.testing.assert_array_equal(again.numbers[name], values)
    middle = median([found, again, found])
    assert middle.slides == 3
    assert canonical(create("stain", method).towards(middle)) == canonical(create("stain", method).towards(found))
