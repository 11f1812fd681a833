"""The default mask, and the one for pale tissue, agree with painted truth: pen, fold, bubble, pale and fatty tissue."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tissue.painted import KINDS, found, ink, inked_share, iou, paint
from histotl.paint.stains import SITES, Site


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", KINDS)
def test_masks_agree_with_painted_truth(kind: str, site: Site) -> None:
    slide = paint(KINDS[kind], site=site, seed=11, mpp=1.0)  # a mask sees 8 µm a pixel anyway
    assert ("pen" in kind) == ink(slide).any()
    for finder in ("hysteresis", "texture"):
        mask = found(slide, finder)
        assert iou(mask, slide) >= 0.95, finder
        assert inked_share(mask, slide) < 0.05, finder


def test_the_score_knows_ink_from_tissue() -> None:
    slide = paint(KINDS["pen"], site="A", seed=11, mpp=2.0)
    under = slide.tissue & ink(slide)
    assert under.any()
    assert iou(slide.tissue, slide) == iou(slide.tissue & ~under, slide) == 1
    assert iou(slide.tissue | ink(slide), slide) < 1
    assert inked_share(slide.tissue | ink(slide), slide) == 1
    assert inked_share(slide.tissue, slide) == 0
    assert iou(np.ones(slide.tissue.shape, bool), slide) < 0.6
