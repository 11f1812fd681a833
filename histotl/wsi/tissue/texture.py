"""A tissue finder for pale and fatty sections: colour that varies from place to place, however little of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import Mask, close_gaps, diamond, px
from histotl.wsi.tissue._left_out import above_edges, left_out
from histotl.wsi.tissue._light import Plane, measure
from histotl.wsi.tissue._settings import check_mpp, check_widths

_STEPS = 1000.0
"""Of the grey levels that stand for colour density, to a density of 1; what has more than 0.255 is tissue anyway."""

_STRONG = 0.1
"""Colour density that no tint of glass has: tissue, even where it is as even as a clot or a dense lymph node."""

_NOISES = 5
"""Colour and its contrast must be this many times the noise of the slide's glass."""


@register("tissue", "texture")
@dataclass(frozen=True, kw_only=True)
class Texture:
    """Local contrast of colour density: sees pale and fatty tissue with walls and fibres, and no even tint of glass.

    Colour density is that of ``hysteresis``: the spread of the optical densities of the three channels against the
    slide's own glass, which dust and shadows hardly have. Tissue has some of it, and lies where its standard deviation
    within a window is above that of glass, or where it is strong. An even smear of stain or of mountant has colour
    without contrast and is left out, as are ink and unscanned black; the walls of fat cells have contrast.

    Args:
        mpp: Resolution to work at, µm per pixel.
        contrast: Least standard deviation of colour density within a window; raised where the glass is noisier.
        pale: Least colour density of tissue; raised likewise.
        window_um: Side of the window.
        smooth_um: Standard deviation of the Gaussian that takes out noise before.
        close_um: Gaps up to about this width are closed; wider holes are left to the clean-up.
    """

    mpp: float = 8.0
    contrast: float = 0.006
    pale: float = 0.01
    window_um: float = 72.0
    smooth_um: float = 4.0
    close_um: float = 48.0

    def __post_init__(self) -> None:
        check_mpp("texture", self.mpp)
        check_widths("texture", smooth_um=self.smooth_um, close_um=self.close_um)
        for name in ("contrast", "pale", "window_um"):
            if not getattr(self, name) > 0:
                raise UsageError(f"texture: {name} is {getattr(self, name)}", hint="give a number above 0")

    def segment(self, image: Pixels, mpp: float) -> Mask:
        """Mask of tissue; see :class:`histotl.wsi.tissue.base.TissueSegmenter`."""
        light = measure(image, steps=_STEPS, sigma_px=self.smooth_um / mpp, every=1)
        blocked, doubtful = left_out(light, mpp)
        noise = _NOISES * light.noise
        side = 2 * (px(self.window_um, mpp) // 2) + 1
        textured = _deviation(light.colour, max(3, side)) > max(self.contrast * _STEPS, noise)
        textured |= light.colour > _STRONG * _STEPS
        if doubtful is not None:
            textured &= ~doubtful
        # A window reaches half its side beyond tissue, which the colour of the pixels themselves takes back.
        found = (light.colour > light.level + max(self.pale * _STEPS, noise)) & above_edges(light.colour)
        found &= diamond(textured, px(self.window_um / 2, mpp))
        if blocked is not None:
            found &= ~blocked
        found = close_gaps(found, px(self.close_um / 2, mpp))
        return found if blocked is None else found & ~blocked


def _deviation(colour: Plane, side: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Standard deviation within squares of a side, float32 (h, w)."""
    import cv2

    box, border = (side, side), cv2.BORDER_REFLECT_101 if min(colour.shape) > side else cv2.BORDER_REPLICATE
    mean = np.asarray(cv2.boxFilter(colour, cv2.CV_32F, box, borderType=border), np.float32)
    variance = np.asarray(cv2.sqrBoxFilter(colour, cv2.CV_32F, box, borderType=border), np.float32)
    variance -= np.square(mean, out=mean)
    return np.sqrt(np.maximum(variance, 0, out=variance), out=variance)
