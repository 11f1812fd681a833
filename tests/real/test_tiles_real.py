"""Grids of real slides: a reader gives the tiles that regions through OpenSlide give, and decodes each tile once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histotl.core.values import TileSpec
from histotl.wsi.slide import open_slide
from histotl.wsi.tiles import TileReader
from histotl.wsi.tiling import plan_tiles

SPECS = {
    "own scale": TileSpec(mpp=0.499),
    "nearly own scale": TileSpec(mpp=0.5),
    "half": TileSpec(mpp=0.998),
    "overlapping, over the border": TileSpec(mpp=0.61, overlap_px=100, edge="pad"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_an_svs_read_directly_is_the_svs_read_by_openslide(real_data: Path, spec: TileSpec) -> None:
    path = real_data / "slides" / "cmu-1-small-region.svs"
    with open_slide(path) as slide, open_slide(path, reader="openslide(decode='openslide')") as through:
        grid = plan_tiles(slide.info, spec)
        with TileReader(slide, grid) as reader, TileReader(through, grid) as other:
            direct, regions = reader.read(slice(None)), other.read(slice(None))
            stats, there = reader.stats, slide.tiled(0)
            assert other.stats.fallback_tiles == len(grid)
    assert there is not None
    assert stats.fallback_tiles == 0
    assert 0 < stats.jpeg_decoded <= there.shape[0] * there.shape[1]
    assert np.array_equal(direct, regions)
