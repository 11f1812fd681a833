"""The contract of a tissue segmenter.

A segmenter is a frozen dataclass registered as ``@register("tissue", name)``. It sees the whole slide once, at the
physical resolution that it asks for, and answers with a mask. Clean-up (smallest area, largest hole) is the same for
all and lives in ``wsi/mask.py``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


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
