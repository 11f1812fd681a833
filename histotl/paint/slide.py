"""Paint one slide from its recipe."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from histotl.core.errors import UsageError
from histotl.paint import artefacts
from histotl.paint.epithelium import paint_gland
from histotl.paint.foreign import paint_fat, paint_muscle
from histotl.paint.layout import COARSE_PX, Layout, lay_out, outline, place_glands, tissue_regions
from histotl.paint.noise import smooth_noise
from histotl.paint.nuclei import NucleusBox
from histotl.paint.stains import absorb, expose
from histotl.paint.stroma import paint_stroma
from histotl.paint.values import ARTEFACTS, Canvas, Mask, PaintedSlide, SlideRecipe, Stain, blank_canvas

_OPTICS_UM = 0.33
"""Standard deviation of the objective's blur."""

_CELLS_PER_MM2: Final = (6500.0, 12500.0)
"""Range of stromal nuclei; as wide within every type as between patients, so that it betrays no type."""


def paint_slide(recipe: SlideRecipe, rng: np.random.Generator) -> PaintedSlide:
    """Paint a slide: outlines, stroma, glands, stain, optics, artefacts, camera.

    Args:
        recipe: What to paint.
        rng: All randomness; the same recipe and state give the same pixels.

    Returns:
        The picture with the exact tissue mask and the outlines of tissues and artefacts.

    Raises:
        UsageError: The slide is under 200 µm a side, or an artefact is unknown.
    """
    _check(recipe)
    layout = lay_out(recipe, rng)
    tissue = layout.tissue_mask()
    canvas = blank_canvas(recipe.shape, recipe.mpp)
    _paint_tissue(canvas, layout, tissue, recipe, rng)
    _finish_densities(canvas, tissue, recipe.stain, rng)
    regions = tissue_regions(layout, recipe)
    marks: list[tuple[str, Mask]] = []
    if "fold" in recipe.artefacts:
        marks.append(("fold", artefacts.fold(canvas, tissue, rng)))
    light = absorb(canvas.first, canvas.second, recipe.stain)
    if "blur" in recipe.artefacts:
        marks.append(("blur", artefacts.defocus(light, tissue, rng, recipe.mpp)))
    if "bubble" in recipe.artefacts:
        marks.append(("bubble", artefacts.bubble(light, tissue, rng, recipe.mpp)))
    if "pen" in recipe.artefacts:
        marks.append(("pen", artefacts.pen(light, tissue, rng, recipe.mpp)))
    for name, where in marks:
        half = COARSE_PX // 2
        regions += outline(where[half::COARSE_PX, half::COARSE_PX], COARSE_PX, name=name, artefact=True)
    return PaintedSlide(image=expose(light, rng), mpp=recipe.mpp, tissue=tissue, regions=tuple(regions))


def _check(recipe: SlideRecipe) -> None:
    if min(recipe.size_um) < 200:
        raise UsageError(
            f"slide of {recipe.size_um} µm is too small to paint glands on", hint="use 200 µm or more a side"
        )
    for name in recipe.artefacts:
        if name not in ARTEFACTS:
            raise UsageError(f"no artefact is called {name!r}", hint=f"use some of {', '.join(ARTEFACTS)}")


def _paint_tissue(canvas: Canvas, layout: Layout, tissue: Mask, recipe: SlideRecipe, rng: np.random.Generator) -> None:
    box = NucleusBox(rng, recipe.mpp)
    if recipe.background == "adipose":
        paint_fat(canvas, tissue, box, rng)
    elif recipe.background == "muscle":
        paint_muscle(canvas, tissue, box, rng)
    else:
        paint_stroma(canvas, tissue, box, rng, cells_per_mm2=rng.uniform(*_CELLS_PER_MM2))
        for gland in place_glands(layout, recipe, rng):
            paint_gland(canvas, gland, box, rng)


def _finish_densities(canvas: Canvas, tissue: Mask, stain: Stain, rng: np.random.Generator) -> None:
    """Uneven section thickness, the objective's blur, and the stain's own strength.

    Both dyes are scaled to the mean densities that the stain asks for: the baths, not the number of nuclei, decide how
    dark a slide is. So the mean colour of a slide says who stained it, and little about what it shows.
    """
    thickness = 1 + 0.07 * smooth_noise(rng, canvas.shape, 160 / canvas.mpp)
    thickness += 0.10 * smooth_noise(rng, canvas.shape, 1.6 / canvas.mpp)
    thickness *= tissue  # nuclei at the rim are cut where the section ends
    for plane, strength in ((canvas.first, stain.strengths[0]), (canvas.second, stain.strengths[1])):
        plane *= thickness
        np.maximum(plane, 0, out=plane)
        plane[...] = ndimage.gaussian_filter(plane, _OPTICS_UM / canvas.mpp, truncate=3.0)
        mean = float(plane[tissue].mean()) if tissue.any() else 0.0
        if mean > 0:
            plane *= np.float32(strength / mean)
