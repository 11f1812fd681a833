"""What a painted slide is made of and what comes with it: recipe, stain, density planes, regions, the slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from histotl.core.units import round_px

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Ring = tuple[tuple[float, float], ...]

Tissue = Literal["normal", "serrated", "adenoma_low", "adenoma_high", "adipose", "muscle"]
"""What one area is painted as."""

Artefact = Literal["pen", "fold", "blur", "bubble"]

TYPES: Final = ("normal", "serrated", "adenoma")
DYSPLASIA: Final = ("none", "low", "high")
ARTEFACTS: Final = ("pen", "fold", "blur", "bubble")


@dataclass(frozen=True, kw_only=True)
class Stain:
    """Colour model of one slide: Beer-Lambert absorption of two dyes in front of a lamp.

    Args:
        first: Absorbance of one unit of the nuclear dye (haematoxylin) in R, G, B; decadic optical density.
        second: The same for the counterstain (eosin; DAB on an immunostain).
        white: Intensity of empty glass in R, G, B, 0 to 255: lamp and white balance.
        strengths: Mean optical density of the two dyes over the tissue; how long the slide lay in each bath.
    """

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    white: tuple[float, float, float]
    strengths: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SlideRecipe:
    """Everything that decides how one slide is painted, except the random numbers.

    Args:
        slide_id: Name, and the stem of the file.
        background: Tissue painted where there is no lesion.
        lesion: Tissue painted in the lesion, None for a slide without one.
        lesion_fraction: Share of the tissue area that the lesion takes, 0 to 1.
        fragments: Pieces of tissue on the glass, side by side.
        size_um: Width and height of the slide in µm.
        mpp: Pixel size in µm.
        stain: Colour model.
        artefacts: Kinds of artefact to add, each at most once.
    """

    slide_id: str
    background: Tissue
    stain: Stain
    lesion: Tissue | None = None
    lesion_fraction: float = 0.0
    fragments: int = 2
    size_um: tuple[float, float] = (1040.0, 800.0)
    mpp: float = 0.5
    artefacts: tuple[Artefact, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (round_px(self.size_um[1] / self.mpp), round_px(self.size_um[0] / self.mpp))


@dataclass(frozen=True, kw_only=True)
class Region:
    """One painted area in level-0 pixels.

    Args:
        name: Class: a tissue (``normal``, ``serrated``, ``adenoma_low`` …) or an artefact.
        kind: ``"tissue"`` or ``"artefact"``.
        rings: Closed outlines, (x, y) points; the first is the outer one, the others are holes.
    """

    name: str
    kind: Literal["tissue", "artefact"]
    rings: tuple[Ring, ...]


@dataclass(frozen=True, kw_only=True)
class PaintedSlide:
    """A painted slide with its truth.

    Args:
        image: uint8 RGB, (h, w, 3), level 0.
        mpp: Pixel size in µm.
        tissue: True on tissue, lumens and holes included; (h, w).
        regions: Outlines of tissue areas and artefacts.
    """

    image: Pixels
    mpp: float
    tissue: Mask
    regions: tuple[Region, ...]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Dye densities in the making; painters change the planes in place.

    Args:
        first: Density of the nuclear dye, float32, (h, w), in optical density.
        second: Density of the counterstain, the same.
        taken: True where a gland stands already.
        mpp: Pixel size in µm.
    """

    first: Plane
    second: Plane
    taken: Mask
    mpp: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.first.shape[0], self.first.shape[1])


def blank_canvas(shape: tuple[int, int], mpp: float) -> Canvas:
    """An empty slide: no dye anywhere."""
    return Canvas(
        first=np.zeros(shape, np.float32), second=np.zeros(shape, np.float32), taken=np.zeros(shape, bool), mpp=mpp
    )
