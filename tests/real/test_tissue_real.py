"""Masks of real slides: finders agree on tissue, and leave out what the eye leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histotl.core.registry import create
from histotl.embed.config import TileConfig
from histotl.embed.tile import tile_slides
from histotl.wsi.mask import TissueMask, find_tissue
from histotl.wsi.slide import open_slide


def found(path: Path, spec: str, mpp: float | None = None) -> TissueMask:
    with open_slide(path, mpp=mpp) as slide:
        return find_tissue(slide, create("tissue", spec), min_area_um2=1000, max_hole_um2=50_000)


@pytest.mark.parametrize(
    ("name", "mpp", "share"),
    [
        ("cmu-1-small-region.svs", None, (0.36, 0.46)),
        ("multiframe_camelyon_challenge_image.dcm", None, (0.20, 0.36)),
        ("kidney-48-5.tif", 4.0, (0.002, 0.012)),  # a crumb beside a fibre, a smear and dust
    ],
)
def test_finders_agree_with_each_other_and_with_the_eye(
    real_data: Path, name: str, mpp: float | None, share: tuple[float, float]
) -> None:
    masks = [found(real_data / "slides" / name, spec, mpp).mask for spec in ("hysteresis", "texture")]
    for mask in masks:
        assert share[0] < mask.mean() < share[1]
    both, either = masks[0] & masks[1], masks[0] | masks[1]
    assert both.sum() / either.sum() > 0.8


def test_the_smear_and_the_fibre_on_the_kidney_slide_are_no_tissue(real_data: Path) -> None:
    for spec in ("hysteresis", "texture", "otsu"):
        mask = found(real_data / "slides" / "kidney-48-5.tif", spec, 4.0).mask
        height, width = mask.shape
        assert not mask[: height // 2].any(), spec
        assert not mask[:, width // 3 :].any(), spec
        assert np.count_nonzero(mask), spec


def test_a_crop_of_tissue_from_border_to_border_is_flagged(real_data: Path, tmp_path: Path) -> None:
    tiling = TileConfig(mpp_override=0.5)
    summary = tile_slides(real_data / "slides" / "target_image.png", tmp_path / "out", tiling=tiling)
    assert [(flag.slide_id, flag.flag) for flag in summary.flagged] == [("target_image", "nearly_full")]
