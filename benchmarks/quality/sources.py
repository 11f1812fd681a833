"""Clean tiles: painted ones, images of a folder, and the tissue of a slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality.cases import has_tissue
from benchmarks.quality.degrade import Tile
from histotl.paint.slide import paint_slide
from histotl.paint.stains import SITES, site_stain
from histotl.paint.values import PaintedSlide, SlideRecipe
from histotl.wsi.slide import open_slide

TILE = 224
PAINTED_MPP = 0.5


def painted_slide(seed: int, artefacts: Sequence[str] = ()) -> PaintedSlide:
    """A painted slide of one of the two sites, an adenoma in normal mucosa."""
    rng = np.random.default_rng([seed, 5])
    stain = site_stain(SITES[seed % 2], rng)
    recipe = SlideRecipe(
        slide_id=f"Q{seed}",
        background="normal",
        lesion="adenoma_low",
        lesion_fraction=0.4,
        fragments=1,
        stain=stain,
        mpp=PAINTED_MPP,
        artefacts=tuple(artefacts),  # type: ignore[arg-type]  # checked by the painter
    )
    return paint_slide(recipe, rng)


def cut(image: Tile, step: int = TILE) -> list[Tile]:
    """Tiles of a picture that have enough tissue."""
    h, w = image.shape[:2]
    corners = [(y, x) for y in range(0, h - TILE + 1, step) for x in range(0, w - TILE + 1, step)]
    tiles = [image[y : y + TILE, x : x + TILE] for y, x in corners]
    return [tile for tile in tiles if has_tissue(tile)]


def truth(slide: PaintedSlide, artefact: str) -> np.ndarray:
    """Where an artefact was painted: bool (h, w)."""
    mask = Image.new("1", slide.image.shape[1::-1])
    draw = ImageDraw.Draw(mask)
    for region in slide.regions:
        if region.kind == "artefact" and region.name == artefact:
            draw.polygon(list(region.rings[0]), fill=1)
    return np.asarray(mask)


def images(files: Sequence[Path], most: int) -> list[Tile]:
    """At most so many pictures with enough tissue, evenly from a list."""
    step = max(1, len(files) // most)
    tiles = [np.asarray(Image.open(path).convert("RGB")) for path in files[::step]]
    return [tile for tile in tiles if has_tissue(tile)]


def slide_tiles(path: Path) -> tuple[list[Tile], float]:
    """Tissue tiles of a small slide's level 0, and its pixel size."""
    with open_slide(path) as slide:
        return cut(slide.whole_level(0)), slide.info.mpp
