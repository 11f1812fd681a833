"""Quality figures on real tiles that are degraded by known amounts, and on a slide with ink and edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.cases import CASES, Case, auroc, figures, scores
from benchmarks.quality.degrade import Tile
from benchmarks.quality.sources import images, slide_tiles
from histotl.image.measures import Measures
from histotl.wsi.slide import open_slide

CHECKED = [case for case in CASES if case.goal is not None]
TILES_MOST = 60

# Pixel sizes of the EBHI photographs are not known; crypts of usual width say about 1 µm.
EBHI_MPP = 1.0


@pytest.fixture(scope="module")
def clean(real_data: Path) -> list[tuple[list[Tile], float]]:
    ebhi = images(sorted((real_data / "ebhi").glob("*/*.jpg")), TILES_MOST)
    brain = images(sorted((real_data / "brain_tiles").glob("*.jpg")), TILES_MOST)
    return [(ebhi, EBHI_MPP), (brain, 0.25), slide_tiles(real_data / "slides" / "cmu-1-small-region.svs")]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_what_is_done_to_real_tiles_is_found(case: Case, clean: list[tuple[list[Tile], float]]) -> None:
    measures = Measures.parse("all")
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for tiles, mpp in clean:
        for column, *pair in scores(case, measures, tiles, mpp, figures(measures, tiles, mpp)):
            found.setdefault(column, []).append((pair[0], pair[1]))
    for column, pairs in found.items():
        before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
        assert auroc(before, after) >= 0.95, column


def test_the_marking_ink_of_a_real_slide_is_green(real_data: Path) -> None:
    tiles, mpp = slide_tiles(real_data / "slides" / "cmu-1-small-region.svs")
    found = figures(Measures.parse("pen"), tiles, mpp)
    assert (found["pen_green"] > 0.002).sum() >= 5, "its surgical margin is inked in turquoise"
    assert found["pen_black"].max() < 0.02
    assert found["pen_red"].max() < 0.02


def test_glass_of_a_real_slide_is_blank_and_has_no_fold(real_data: Path) -> None:
    with open_slide(real_data / "slides" / "cmu-1-small-region.svs") as slide:
        corner = slide.whole_level(0)[600:824, 100:324]
        found = figures(Measures.parse("all"), [corner], slide.info.mpp)
    assert found["blank"][0] > 0.99
    assert np.isnan(found["fold"][0])
    assert found["pen"][0] == 0
