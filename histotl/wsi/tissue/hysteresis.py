"""The default tissue finder: stain above the glass's own noise, grown from sure tissue into pale tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import (
    Areas,
    Mask,
    close_gaps,
    diamond,
    px,
    reaches_border,
)
from histotl.wsi.tissue._left_out import above_edges, left_out
from histotl.wsi.tissue._light import measure
from histotl.wsi.tissue._settings import check_mpp, check_widths

_FRINGE_UM = 30.0
"""The coloured fringe of a slide's edge is thinner than twice this."""

_FINE_PX = 1_500_000
"""Slides up to this size are seen in full resolution: there the borders of tissue weigh more, and time less."""

_COARSER = 1.5
"""A picture so many times coarser than ``mpp`` has been smoothed by shrinking it."""

_GLASS_PX = 60_000
"""Pixels of such a picture, about, that the colour of the glass is taken from."""

_SURE = 54
"""Grey level that stands for the least spread of sure tissue; strong colour has 255, which no noise reaches."""


@register("tissue", "hysteresis")
@dataclass(frozen=True, kw_only=True)
class Hysteresis:
    """Colour density above the noise of the slide's own glass, grown from sure into pale tissue; no weights.

    Stain absorbs some colours more than others, while glass, dust, bubbles and the shadow of the slide's edge take all
    alike. So the measure is the spread of the optical densities of the three channels (Beer-Lambert), taken against the
    glass colour and judged against the noise of this very slide. Sure tissue is above ``sure``; what is above ``pale``
    and touches it belongs to it (hysteresis, Canny 1986), up to where the colour falls off. Green, blue and black ink
    and unscanned black are left out.

    Args:
        mpp: Resolution to work at, µm per pixel; slides of more than about 1.5 million such pixels (1 cm² at 8 µm) are
            worked on at the next whole multiple that smooths as much as ``smooth_um`` does (16 µm).
        sure: Least spread of density of sure tissue; H&E has 0.1 to 0.6.
        pale: Least spread of tissue that touches sure tissue; raised where the glass is noisier.
        smooth_um: Standard deviation of the Gaussian that takes out noise, and joins cells and fibres.
        close_um: Gaps up to about this width are closed.
    """

    mpp: float = 8.0
    sure: float = 0.045
    pale: float = 0.015
    smooth_um: float = 5.0
    close_um: float = 24.0

    def __post_init__(self) -> None:
        check_mpp("hysteresis", self.mpp)
        if not 0 < self.pale <= self.sure:
            fact = f"hysteresis: pale is {self.pale} and sure is {self.sure}"
            raise UsageError(fact, hint="give densities with 0 < pale <= sure, such as 0.015 and 0.045")
        check_widths("hysteresis", smooth_um=self.smooth_um, close_um=self.close_um)

    def mpp_of(self, width_um: float, height_um: float) -> float:
        """Coarser for a large slide; see :class:`histotl.wsi.tissue.base.SeesLargeCoarser`.

        The mean of a square of ``a`` pixels spreads like a Gaussian of ``a / sqrt(12)``: on large slides it is taken in
        place of the Gaussian, which takes longer.
        """
        times = max(1, round(self.smooth_um / self.mpp * math.sqrt(12)))
        large = width_um * height_um > _FINE_PX * self.mpp**2 and min(width_um, height_um) >= 2 * times * self.mpp
        return self.mpp * times if large else self.mpp

    def segment(self, image: Pixels, mpp: float) -> Mask:
        """Mask of tissue; see :class:`histotl.wsi.tissue.base.TissueSegmenter`."""
        steps, is_coarse = _SURE / self.sure, mpp > _COARSER * self.mpp
        sigma_px = 0.0 if is_coarse else self.smooth_um / mpp
        every = max(1, image.size // 3 // _GLASS_PX) if is_coarse else 1
        light = measure(image, steps=steps, sigma_px=sigma_px, every=every)
        pale, sure = (
            min(254, math.floor(max(least * steps, light.level + noises * light.noise)))
            for least, noises in ((self.pale, 4), (self.sure, 8))
        )
        blocked, doubtful = left_out(light, mpp)
        candidate = (light.colour > pale) & above_edges(light.colour)
        if blocked is not None:
            candidate &= ~blocked
        found = close_gaps(candidate, max(1, round(self.close_um / mpp / 2)))
        if blocked is not None:
            found &= ~blocked
        seed = (light.colour > sure) & found
        if doubtful is not None:
            seed &= ~doubtful
        # Gaps are closed first, so that one search for connected areas does for both questions.
        areas = Areas(found, in_cells=is_coarse)
        kept = areas.that_hold(seed)
        if reaches_border(found):
            # Thin strips along the picture's border are the coloured fringe of the slide's edge, not tissue.
            kept &= areas.that_hold(diamond(found, -px(_FRINGE_UM, mpp))) | ~areas.at_border()
        return areas.only(kept)
