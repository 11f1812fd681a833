"""What no finder that goes by colour takes for tissue: ink, unscanned black, dirt, and the blur of dark borders."""

from __future__ import annotations

import numpy as np

from histotl.wsi.tissue._areas import Areas, Mask, diamond, px, touching
from histotl.wsi.tissue._light import Light, Plane

_BLACK_UM = 80.0
"""Dark areas at least twice this wide were not scanned."""

_INK_UM = 40.0
"""A pen's line is at least this wide; what is thinner may be a nucleus or a fibre of any colour."""

_RIM_UM, _FADES_UM = 8.0, 24.0
"""The blurred border of ink is left out to the first distance; up to the second nothing counts as sure tissue."""

_EDGE = 0.35
"""Tissue ends where its colour has fallen to this share of that beside it: blur draws dark tissue out over glass."""


def above_edges(colour: Plane) -> Mask:
    """Where colour is no mere blur of what lies beside it."""
    import cv2

    beside = cv2.dilate(colour, np.ones((3, 3), np.uint8))
    return np.asarray(cv2.compare(colour, cv2.convertScaleAbs(beside, alpha=_EDGE), cv2.CMP_GE)).view(np.bool_)


def left_out(light: Light, mpp: float) -> tuple[Mask | None, Mask | None]:
    """What is no tissue whatever its colour: unscanned black, black ink and dirt, green and blue ink; None for none.

    And the wider area around ink in which nothing is sure.
    """
    blocked = light.grey if light.grey.any() else None
    ink = _ink(light.inked, mpp)
    rim = None if ink is None else diamond(ink, px(_RIM_UM, mpp))
    for mask in (_black_areas(light.dark, mpp), rim):
        if mask is not None:
            blocked = mask if blocked is None else blocked | mask
    return blocked, None if ink is None else diamond(ink, px(_FADES_UM, mpp))


def _black_areas(dark: Mask, mpp: float) -> Mask | None:
    """Unscanned black: dark areas wider than tissue is ever black, with a rim for the blur of their border."""
    if not dark.any():
        return None
    reach, areas = px(_BLACK_UM, mpp), Areas(dark)
    wide = diamond(diamond(dark, -reach), reach) | areas.only(areas.at_border())
    return diamond(wide, px(16, mpp)) if wide.any() else None


def _ink(inked: Mask, mpp: float) -> Mask | None:
    """Lines of a pen: what has the colour of ink and is wide enough somewhere."""
    if not inked.any():
        return None
    core = diamond(inked, -px(_INK_UM / 2, mpp))
    return touching(inked, core) if core.any() else None
