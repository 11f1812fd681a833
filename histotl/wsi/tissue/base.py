"""The contracts of what finds tissue.

Both are frozen dataclasses registered as ``@register("tissue", name)``. A segmenter sees the whole slide once, at the
physical resolution that it asks for, and answers with a mask; clean-up (smallest area, largest hole) is the same for
all and lives in ``wsi/mask.py``. A tissue file knows without looking: its mask is taken as it is.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from histotl.core.values import SlideInfo


class TissueSegmenter(Protocol):
    """Finds tissue."""

    @property
    def mpp(self) -> float:
        """Resolution that it works at, µm per pixel; a coarser slide is given as it is."""

    def segment(self, image: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.bool_]:
        """Mask of tissue.

        Args:
            image: uint8 RGB (h, w, 3), the whole slide.
            mpp: Its true resolution in µm per pixel.

        Returns:
            bool (h, w), True on tissue.
        """


@runtime_checkable
class SeesLargeCoarser(Protocol):
    """What a segmenter may also be: one that large slides are shown to at a coarser resolution."""

    def mpp_of(self, width_um: float, height_um: float) -> float:
        """Resolution, µm per pixel, for a slide of a size."""


@runtime_checkable
class ReadsFile(Protocol):
    """What a finder may also be: one whose answer depends on what stands in a file."""

    def digest(self, info: SlideInfo) -> str:
        """Tells one content of the file from another; tiles are made again when it changes.

        Raises:
            OutlineError: The slide has no file.
        """


@runtime_checkable
class TissueFile(ReadsFile, Protocol):
    """Says where tissue is by a file that somebody made for the slide."""

    @property
    def mpp(self) -> float:
        """Resolution of its masks, µm per pixel; a coarser slide has coarser ones."""

    def mask(self, info: SlideInfo, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Mask of tissue, bool of ``shape`` (height, width), which covers the whole slide.

        Raises:
            OutlineError: The slide has no file, or it cannot be used.
        """


TissueFinder = TissueSegmenter | TissueFile
"""What a tissue spec builds."""
