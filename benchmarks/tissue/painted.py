"""Painted slides with pen, fold, bubble, pale and fatty tissue, and the score of a mask on them.

Truth is what was painted as tissue, folds and the cells of fat included. Ink is none: on glass it counts as wrong. What
lies under ink is tissue that cannot be used; a mask may have it or not, and it counts neither way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.draw import polygon2mask

from histotl.core.registry import create
from histotl.paint.slide import paint_slide
from histotl.paint.stains import SITES, Site, rescaled, site_stain
from histotl.paint.values import Artefact, PaintedSlide, SlideRecipe, Tissue
from histotl.wsi.mask import find_tissue
from histotl.wsi.slide import open_array

Mask = npt.NDArray[np.bool_]

_FAT_UPTAKE = (0.1, 0.38)
"""Of the two dyes by fat, against mucosa; as in painted cohorts."""

SIZE_UM = (1500.0, 1200.0)
MIN_AREA_UM2, MAX_HOLE_UM2 = 1000.0, 50_000.0
"""What ``histotl tile`` cleans up by default."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is painted: tissue, how much of the two dyes it takes, and what went wrong."""

    background: Tissue = "normal"
    uptake: tuple[float, float] = (1.0, 1.0)
    artefacts: tuple[Artefact, ...] = ()


KINDS = {
    "plain": Kind(),
    "pen": Kind(artefacts=("pen",)),
    "fold": Kind(artefacts=("fold",)),
    "bubble": Kind(artefacts=("bubble",)),
    "pen, fold and blur": Kind(artefacts=("pen", "fold", "blur")),
    "pale, 30 % of the dye": Kind(uptake=(0.3, 0.3)),
    "pale, 15 % of the dye": Kind(uptake=(0.15, 0.15)),
    "fat": Kind(background="adipose", uptake=_FAT_UPTAKE),
    "fat, pen and fold": Kind(background="adipose", uptake=_FAT_UPTAKE, artefacts=("pen", "fold")),
}


def paint(kind: Kind, *, site: Site, seed: int, mpp: float = 0.5) -> PaintedSlide:
    """A slide of a kind; another seed gives other tissue and, on those with a pen, another ink."""
    rng = np.random.default_rng([seed, SITES.index(site)])
    recipe = SlideRecipe(
        slide_id="painted",
        background=kind.background,
        stain=rescaled(site_stain(site, rng), *kind.uptake),
        size_um=SIZE_UM,
        mpp=mpp,
        artefacts=kind.artefacts,
    )
    return paint_slide(recipe, rng)


def slides(seeds: int, *, mpp: float = 0.5) -> Iterator[tuple[str, PaintedSlide]]:
    """All kinds, at both sites, so many times."""
    for name, kind in KINDS.items():
        for site in SITES:
            for seed in range(seeds):
                yield name, paint(kind, site=site, seed=seed, mpp=mpp)


def found(slide: PaintedSlide, tissue: str) -> Mask:
    """The mask that a finder gives, in the slide's own pixels."""
    mask = find_tissue(
        open_array(slide.image, mpp=slide.mpp),
        create("tissue", tissue),  # type: ignore[arg-type]
        min_area_um2=MIN_AREA_UM2,
        max_hole_um2=MAX_HOLE_UM2,
    ).mask
    height, width = slide.tissue.shape
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def ink(slide: PaintedSlide) -> Mask:
    """Where a pen was."""
    where = np.zeros(slide.tissue.shape, bool)
    for region in slide.regions:
        if region.name == "pen":
            outer, *holes = (polygon2mask(where.shape, np.array(ring)[:, ::-1]) for ring in region.rings)
            for hole in holes:
                outer &= ~hole
            where |= outer
    return where


def iou(mask: Mask, slide: PaintedSlide) -> float:
    """Intersection over union of a mask and the truth, wherever there is not both tissue and ink."""
    counts = ~(slide.tissue & ink(slide))
    return float((mask & slide.tissue & counts).sum() / ((mask | slide.tissue) & counts).sum())


def inked_share(mask: Mask, slide: PaintedSlide) -> float:
    """Share of the ink on glass that a mask takes for tissue; 0 where there is none."""
    on_glass = ink(slide) & ~slide.tissue
    return float((mask & on_glass).sum() / max(1, on_glass.sum()))
