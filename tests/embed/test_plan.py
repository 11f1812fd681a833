"""Planning a slide reads no more of it than it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histotl.core.provenance import Provenance
from histotl.core.values import TileGrid
from histotl.embed._plan import plan_slide, tissue_finder
from histotl.embed.config import TileConfig
from histotl.store import layout
from histotl.wsi.readers.array import ArrayBackend
from histotl.wsi.slide import Slide, open_array


@pytest.mark.parametrize(
    ("side", "mpp", "read", "picture_px"),
    [
        (3136, 0.5, {1}, 384),  # tiles come from level 0, which a larger picture would need too
        (3136, 0.25, {1}, 384),
        (5120, 0.25, {1}, 1024),  # level 1 is coarser than the level of the tiles
        (1200, 0.5, {0, 1}, 1024),  # the second level is too small to judge an outline by
    ],
)
def test_the_picture_of_a_small_slide_needs_no_level_that_tiles_are_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, mpp: float, read: set[int], picture_px: int
) -> None:
    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), 240, np.uint8)
    image[side // 4 :, side // 4 :] = (190, 120, 170)
    image -= rng.integers(0, 4, image.shape, np.uint8)
    slide = open_array(image, mpp=mpp, levels=[image[::4, ::4].copy()], slide_id="small")
    levels: list[int] = []
    real = ArrayBackend.read_region

    def noted(self: ArrayBackend, x: int, y: int, level: int, width: int, height: int) -> object:
        levels.append(level)
        return real(self, x, y, level, width, height)

    monkeypatch.setattr(ArrayBackend, "read_region", noted)
    assert len(plan(slide, tmp_path))
    assert set(levels) == read
    with Image.open(layout.thumbnail_path(tmp_path, "small")) as picture:
        assert picture.size == (picture_px, picture_px)


def plan(slide: Slide, out: Path) -> TileGrid:
    tiling = TileConfig()
    layout.prepare_output(out)
    return plan_slide(slide, tiling, tissue_finder(tiling), out, Provenance.now(specs={}, inputs={}), "source")
