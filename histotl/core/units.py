"""Units and the one rounding rule.

Every coordinate says its frame in its name: ``_l0`` level-0 pixels, ``_px`` tile pixels, ``_um`` micrometres,
``mpp`` micrometres per pixel.
"""

from __future__ import annotations

import math
from typing import NewType

Mpp = NewType("Mpp", float)
"""Micrometres per pixel."""

Um = NewType("Um", float)
"""A length in micrometres."""

MPP_MIN, MPP_MAX = 0.05, 50.0
"""Outside this range a pixel size is a metadata error, not a microscope."""

MPP_ANISOTROPY_MAX = 0.05
"""Largest relative difference between the pixel size in x and in y."""


def round_px(value: float) -> int:
    """Round a scaled size or position to whole pixels, halves up.

    The only rounding in the package: ``int()`` truncates and ``round()`` takes halves to even, and mixing the two
    shifts grids by one pixel.
    """
    return math.floor(value + 0.5)


def nominal_magnification(mpp: float) -> float:
    """Magnification that a pixel size is usually called by: 10 / mpp, so 0.5 µm/px is "20x"."""
    return 10.0 / mpp
