"""The default tissue finder: stain above the glass's own noise, grown from sure tissue into pale tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import Areas, Mask, close_gaps, diamond, px, reaches_border, touching
from histotl.wsi.tissue._light import UNIT, Density, Light, measure

_NEUTRAL = 10
"""Where the mean density is this many times the spread, something grey is dense: black ink, a particle."""

_INK_UM = 40.0
"""A pen's line is at least this wide; what is thinner may be a nucleus or a fibre of any colour."""

_FRINGE_UM = 30.0
"""The coloured fringe of a slide's edge is thinner than twice this."""

_FINE_PX = 1_500_000
"""Pictures up to this size are measured at their own pixels: there the borders of tissue weigh more, and time less."""

_PALE = 24
"""Grey level that stands for the density of pale tissue where the colour between coarse pixels is interpolated."""


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
        light = measure(_shrink(image, factor), sigma_px=self.smooth_um / mpp if factor == 1 else 0.0, mpp=coarse_mpp)
        pale = max(self.pale * UNIT, light.level + 4 * light.noise)
        sure = max(self.sure * UNIT, light.level + 8 * light.noise)
        blocked = _blocked(light, pale, coarse_mpp)
        coloured = light.colour > pale
        candidate = coloured if blocked is None else coloured & ~blocked
        grown = touching(candidate, light.colour > sure)
        grown = _without_edge_fringes(grown, self._closing_px(coarse_mpp), coarse_mpp)
        if factor > 1:
            grown = _between_pixels(light.colour, grown | ~coloured, pale, factor, image.shape[:2])
        closed = close_gaps(grown, self._closing_px(mpp))
        if blocked is not None:
            closed &= ~_repeated(blocked, factor, image.shape[:2])
        return closed

    def _shrunk_by(self, image: Pixels, mpp: float) -> int:
        """Side of the squares of pixels whose mean is taken instead of the Gaussian, which takes longer.

        A square of ``a`` pixels spreads like a Gaussian of ``a / sqrt(12)``.
        """
        height, width = image.shape[:2]
        factor = max(1, round(self.smooth_um / mpp * math.sqrt(12)))
        return 1 if height * width <= _FINE_PX or min(height, width) < 2 * factor else factor

    def _closing_px(self, mpp: float) -> int:
        return max(1, round(self.close_um / mpp / 2))


def _shrink(image: Pixels, factor: int) -> Pixels:
    """Means of squares of pixels; what is left over at the right and lower border is like its neighbour."""
    if factor == 1:
        return image
    import cv2

    height, width = image.shape[0] // factor, image.shape[1] // factor
    small = cv2.resize(image[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
    below, beside = (int(image.shape[axis] % factor > 0) for axis in (0, 1))
    if below or beside:
        small = cv2.copyMakeBorder(small, 0, below, 0, beside, cv2.BORDER_REPLICATE)
    return np.asarray(small, np.uint8)


def _between_pixels(colour: Density, usable: Mask, pale: float, factor: int, shape: tuple[int, ...]) -> Mask:
    """Where the colour of coarse pixels, interpolated to fine ones, is above that of pale tissue.

    Args:
        colour: int16 (h, w).
        usable: bool (h, w): colour elsewhere counts as none.
        pale: Least spread of pale tissue.
        factor: Fine pixels to a coarse one.
        shape: Of the fine mask.
    """
    import cv2

    level = cv2.convertScaleAbs(colour, alpha=_PALE / pale)
    level *= usable.view(np.uint8)
    size = (level.shape[1] * factor, level.shape[0] * factor)
    fine = cv2.resize(level, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine[: shape[0], : shape[1]] > _PALE)


def _repeated(mask: Mask, factor: int, shape: tuple[int, ...]) -> Mask:
    """A mask with every pixel repeated in both directions, cut to a shape."""
    if factor == 1:
        return mask
    wide = (mask.view(np.uint8).astype(np.uint16) * 0x0101).view(np.bool_) if factor == 2 else mask.repeat(factor, 1)
    return wide.repeat(factor, 0)[: shape[0], : shape[1]]


def _blocked(light: Light, pale: float, mpp: float) -> Mask | None:
    """What is no tissue whatever its colour: unscanned black, black ink and dirt, green and blue ink; None for none."""
    red, green, blue = light.density
    total = red + green + blue
    # Where the spread is so large, nothing is grey; without the limit the numbers would not fit.
    grey = (np.minimum(light.colour, 1000) * (3 * _NEUTRAL) < total) & (total > 3 * _NEUTRAL * pale)
    found = [grey if grey.any() else None, light.black, _ink(light.density, mpp)]
    blocked = None
    for mask in found:
        if mask is not None:
            blocked = mask if blocked is None else blocked | mask
    return blocked


def _ink(density: tuple[Density, Density, Density], mpp: float) -> Mask | None:
    """Green and blue marker.

    Haematoxylin, eosin and DAB all take green light at least as much as the weakest other colour; green ink lets green
    through while it takes red and blue. Blue ink takes red most, and green far more than blue: haematoxylin takes green
    most. Red ink looks like blood and stays in; black ink has no colour and is no tissue anyway.
    """
    red, green, blue = density
    # A quick look first, which few pixels of tissue pass.
    weak = np.minimum(red, blue)
    places = np.flatnonzero(
        ((weak > green) & (weak > 0.12 * UNIT)) | ((red > green) & (red > 0.35 * UNIT) & (red > blue + blue))
    )
    if not len(places):
        return None
    red, green, blue = (plane.ravel()[places].astype(np.int32) for plane in density)
    weak = np.minimum(red, blue)
    is_green = (weak > 0.12 * UNIT) & (10 * green < 7 * weak)
    is_blue = (red > 0.35 * UNIT) & (20 * red > 23 * green) & (10 * blue < 4 * red)
    found = np.zeros(density[0].shape, bool)
    found.ravel()[places] = is_green | is_blue
    core = diamond(found, -px(_INK_UM / 2, mpp))
    return diamond(touching(found, core), px(24, mpp)) if core.any() else None


def _without_edge_fringes(mask: Mask, closing_px: int, mpp: float) -> Mask:
    """Drop thin strips along the picture's border: the coloured fringe of the slide's edge, not tissue."""
    if not reaches_border(mask):
        return mask
    closed = close_gaps(mask, closing_px)
    areas = Areas(closed)
    fringe = areas.at_border() & ~areas.that_hold(diamond(closed, -px(_FRINGE_UM, mpp)))
    fringe[0] = False
    return mask & areas.only(~fringe) if fringe.any() else mask
