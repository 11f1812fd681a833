"""The default tissue finder: stain above the glass's own noise, grown from sure tissue into pale tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import (
    Areas,
    Mask,
    any_of_cell,
    close_gaps,
    diamond,
    px,
    reaches_border,
    repeated,
    touching,
)
from histotl.wsi.tissue._light import Light, Plane, measure

_BLACK_UM = 80.0
"""Dark areas at least twice this wide were not scanned."""

_INK_UM = 40.0
"""A pen's line is at least this wide; what is thinner may be a nucleus or a fibre of any colour."""

_FRINGE_UM = 30.0
"""The coloured fringe of a slide's edge is thinner than twice this."""

_FINE_PX = 1_500_000
"""Pictures up to this size are measured at their own pixels: there the borders of tissue weigh more, and time less."""

_GLASS_PX = 100_000
"""Pixels of larger ones, about, that the colour of the glass is taken from."""

_SURE = 54
"""Grey level that stands for the least spread of sure tissue; strong colour has 255, which no noise reaches."""

_PALE = 24
"""Grey level of pale tissue where the colour between coarse pixels is interpolated."""


@register("tissue", "hysteresis")
@dataclass(frozen=True, kw_only=True)
class Hysteresis:
    """Colour density above the noise of the slide's own glass, grown from sure into pale tissue; no weights.

    Stain absorbs some colours more than others, while glass, dust, bubbles and the shadow of the slide's edge take all
    alike. So the measure is the spread of the optical densities of the three channels (Beer-Lambert), taken against the
    glass colour and judged against the noise of this very slide. Sure tissue is above ``sure``; what is above ``pale``
    and touches it belongs to it (hysteresis, Canny 1986). Green, blue and black ink and unscanned black are
    left out.

    Args:
        mpp: Resolution to work at, µm per pixel.
        sure: Least spread of density of sure tissue; H&E has 0.1 to 0.6.
        pale: Least spread of tissue that touches sure tissue; raised where the glass is noisier.
        smooth_um: Standard deviation of the Gaussian that takes out noise, and joins cells and fibres.
        close_um: Gaps up to about this width are closed.
    """

    mpp: float = 8.0
    sure: float = 0.045
    pale: float = 0.02
    smooth_um: float = 5.0
    close_um: float = 24.0

    def __post_init__(self) -> None:
        if not 0 < self.mpp < math.inf:
            raise UsageError(f"hysteresis: mpp is {self.mpp}", hint="give µm per pixel above 0, such as 8")
        if not 0 < self.pale <= self.sure:
            fact = f"hysteresis: pale is {self.pale} and sure is {self.sure}"
            raise UsageError(fact, hint="give densities with 0 < pale <= sure, such as 0.02 and 0.045")
        if not (self.smooth_um >= 0 and self.close_um >= 0):
            fact = f"hysteresis: smooth_um is {self.smooth_um}, close_um is {self.close_um}"
            raise UsageError(fact, hint="give micrometres, 0 or more")

    def segment(self, image: Pixels, mpp: float) -> Mask:
        """Mask of tissue; see :class:`histotl.wsi.tissue.base.TissueSegmenter`."""
        factor = self._shrunk_by(image, mpp)
        coarse_mpp = factor * mpp
        steps = _SURE / self.sure
        if factor == 1:
            light = measure(image, steps=steps, sigma_px=self.smooth_um / mpp, every=1)
        else:
            small = _shrink(image, factor)
            light = measure(small, steps=steps, sigma_px=0.0, every=max(1, small.size // 3 // _GLASS_PX))
        pale, sure = (
            min(254, math.floor(max(least * steps, light.level + noises * light.noise)))
            for least, noises in ((self.pale, 4), (self.sure, 8))
        )
        blocked = _blocked(light, coarse_mpp)
        coloured = light.colour > pale
        candidate = coloured if blocked is None else coloured & ~blocked
        grown = touching(candidate, light.colour > sure)
        closed = close_gaps(grown, max(1, round(self.close_um / coarse_mpp / 2)))
        if blocked is not None:
            closed &= ~blocked
        closed = _without_edge_fringes(closed, coarse_mpp, in_cells=factor > 1)
        if factor == 1:
            return closed
        fine = _between_pixels(light.colour, closed, coloured, factor, pale)
        if blocked is not None:
            fine &= ~repeated(blocked, factor)
        return fine[: image.shape[0], : image.shape[1]]

    def _shrunk_by(self, image: Pixels, mpp: float) -> int:
        """Side of the squares of pixels whose mean is taken instead of the Gaussian, which takes longer.

        A square of ``a`` pixels spreads like a Gaussian of ``a / sqrt(12)``.
        """
        height, width = image.shape[:2]
        factor = max(1, round(self.smooth_um / mpp * math.sqrt(12)))
        return 1 if height * width <= _FINE_PX or min(height, width) < 2 * factor else factor


def _shrink(image: Pixels, factor: int) -> Pixels:
    """Means of squares of pixels; what is left over at the right and lower border is like its neighbour."""
    import cv2

    height, width = image.shape[0] // factor, image.shape[1] // factor
    small = cv2.resize(image[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
    below, beside = (int(image.shape[axis] % factor > 0) for axis in (0, 1))
    if below or beside:
        small = cv2.copyMakeBorder(small, 0, below, 0, beside, cv2.BORDER_REPLICATE)
    return np.asarray(small, np.uint8)


def _between_pixels(colour: Plane, tissue: Mask, coloured: Mask, factor: int, pale: int) -> Mask:
    """Tissue at finer pixels: where the colour between coarse ones, interpolated, is above that of pale tissue.

    Args:
        colour: uint8 (h, w).
        tissue: bool (h, w), with its gaps closed.
        coloured: bool (h, w): where ``colour`` is above ``pale``; outside tissue such colour counts as none, and so
            does all that is no neighbour of tissue.
        factor: Fine pixels to a coarse one.
        pale: Spread that pale tissue is above.

    Returns:
        bool (h * factor, w * factor).
    """
    import cv2

    level = np.asarray(cv2.convertScaleAbs(colour, alpha=_PALE / max(1, pale)), np.uint8)
    # Farther from tissue, what is nearly pale would overshoot between pixels.
    near = cv2.dilate(tissue.view(np.uint8), np.ones((3, 3), np.uint8)).view(np.bool_)
    level *= (tissue | (near & ~coloured)).view(np.uint8)
    gaps = (tissue & ~coloured).view(np.uint8)
    gaps *= 2 * _PALE
    cv2.max(level, gaps, dst=level)
    size = (level.shape[1] * factor, level.shape[0] * factor)
    fine = cv2.resize(level, size, interpolation=cv2.INTER_CUBIC)
    return np.greater(fine, _PALE, out=fine.view(np.bool_))


def _blocked(light: Light, mpp: float) -> Mask | None:
    """What is no tissue whatever its colour: unscanned black, black ink and dirt, green and blue ink; None for none."""
    blocked = light.grey if light.grey.any() else None
    for mask in (_black_areas(light.dark, mpp), _ink(light.inked, mpp)):
        if mask is not None:
            blocked = mask if blocked is None else blocked | mask
    return blocked


def _black_areas(dark: Mask, mpp: float) -> Mask | None:
    """Unscanned black: dark areas wider than tissue is ever black, with a rim for the blur of their border."""
    if not dark.any():
        return None
    reach, areas = px(_BLACK_UM, mpp), Areas(dark)
    wide = diamond(diamond(dark, -reach), reach) | areas.only(areas.at_border())
    return diamond(wide, px(16, mpp)) if wide.any() else None


def _ink(inked: Mask, mpp: float) -> Mask | None:
    """Lines of a pen: what has the colour of ink, is wide enough somewhere, and a rim for its paler border."""
    if not inked.any():
        return None
    core = diamond(inked, -px(_INK_UM / 2, mpp))
    return diamond(touching(inked, core), px(24, mpp)) if core.any() else None


def _without_edge_fringes(tissue: Mask, mpp: float, *, in_cells: bool) -> Mask:
    """Drop thin strips along the picture's border: the coloured fringe of the slide's edge, not tissue.

    Args:
        tissue: The mask.
        mpp: Of its pixels.
        in_cells: Take parts in neighbouring cells of 2 x 2 pixels for connected, which is quicker.
    """
    if not reaches_border(tissue):
        return tissue
    thick = diamond(tissue, -px(_FRINGE_UM, mpp))
    areas = Areas(any_of_cell(tissue) if in_cells else tissue)
    fringe = areas.at_border() & ~areas.that_hold(any_of_cell(thick) if in_cells else thick)
    if not fringe.any():
        return tissue
    kept = areas.only(~fringe)
    return tissue & repeated(kept, 2)[: tissue.shape[0], : tissue.shape[1]] if in_cells else kept
