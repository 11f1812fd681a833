"""Quality figures on painted slides: artefacts whose place is known, and clean painted tiles that are degraded."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.cases import CASES, Case, auroc, beyond, figures, scores
from benchmarks.quality.sources import PAINTED_MPP, cut, painted_slide, truth
from histotl.image.measures import Measures

TILE, STEP = 224, 112
CHECKED = [case for case in CASES if case.goal is not None]


@pytest.fixture(scope="module")
def clean() -> list[np.ndarray]:
    return cut(painted_slide(0).image) + cut(painted_slide(1).image)


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_what_is_done_to_painted_tiles_is_found(case: Case, clean: list[np.ndarray]) -> None:
    measures = Measures.parse("all")
    assert len(clean) >= 20
    for column, before, after in scores(case, measures, clean, PAINTED_MPP, figures(measures, clean, PAINTED_MPP)):
        assert auroc(before, after) >= 0.95, column


@pytest.mark.parametrize("case", [case for case in CASES if "fold" in case.name], ids=lambda case: case.name)
def test_the_line_for_folds_calls_few_clean_tiles_doubtful_and_most_folded_ones(
    case: Case, clean: list[np.ndarray]
) -> None:
    measures = Measures.parse("fold")
    before, after = beyond(case, "fold", measures, clean, PAINTED_MPP, figures(measures, clean, PAINTED_MPP))
    assert before.mean() <= 0.05
    assert after.mean() >= 0.6


@pytest.mark.parametrize(
    ("artefact", "column", "sign"),
    [
        ("blur", "focus_laplacian", -1),
        ("blur", "focus_reblur", -1),
        ("pen", "pen", 1),
        ("fold", "fold", 1),
        ("bubble", "bubble", 1),
    ],
)
def test_painted_artefacts_are_found_where_they_are(artefact: str, column: str, sign: int) -> None:
    """Tiles that lie in a painted artefact against those of the same slides that have none of it.

    A bubble is found by its edge: tiles that lie in it as a whole count neither way.
    """
    measures = Measures.parse("all")
    inside, outside = [], []
    for seed in range(3):
        slide = painted_slide(seed, [artefact])
        where = truth(slide, artefact)
        h, w = slide.tissue.shape
        for y in range(0, h - TILE + 1, STEP):
            for x in range(0, w - TILE + 1, STEP):
                window = (slice(y, y + TILE), slice(x, x + TILE))
                if slide.tissue[window].mean() < 0.6:
                    continue
                share = where[window].mean()
                if share == 0:
                    outside.append(slide.image[window])
                elif share >= (0.6 if artefact == "blur" else 0.15) and not (artefact == "bubble" and share > 0.85):
                    inside.append(slide.image[window])
    assert min(len(inside), len(outside)) >= 8, "the slides were painted otherwise than this test thinks"
    before, after = (
        np.nan_to_num(sign * figures(measures, tiles, PAINTED_MPP)[column].astype(float), nan=1e9)
        for tiles in (outside, inside)
    )
    assert auroc(before, after) >= 0.95


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)
