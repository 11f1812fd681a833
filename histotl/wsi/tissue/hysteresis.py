"""The default tissue finder: stain above the glass's own noise, grown from sure tissue into pale tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.wsi.readers.base import Pixels

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_BLACK = 40
"""Pixels whose largest channel is below this were not imaged, or lie under opaque dirt."""

_GLASS_CHROMA = 30
"""Glass is neutral: its channels differ by less, of 255, even with a poor white balance."""

_NEUTRAL = 0.1
"""Where the spread is below this share of the mean density, something grey is dense: black ink, a particle."""

_INK_UM = 40.0
"""A pen's line is at least this wide; what is thinner may be a nucleus or a fibre of any colour."""


@dataclass(frozen=True, kw_only=True)
class _Light:
    """What the picture says of the light: optical densities against its own glass.

    Args:
        density: float32 (3, h, w), ``-log10(I / I_glass)`` of every channel, smoothed.
        colour: float32 (h, w), largest minus smallest density: 0 for glass, dirt and shadow, however dark.
        noise: Standard deviation of ``colour`` on glass.
        level: Median of ``colour`` on glass.
    """

    density: npt.NDArray[np.float32]
    colour: Plane
    level: float
    noise: float


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
        # Planes: NumPy is many times slower along a last axis of three.
        planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
        black = _black_areas(planes, mpp)
        light = _measure(planes, black, self.smooth_um / mpp)
        pale = max(self.pale, light.level + 4 * light.noise)
        sure = max(self.sure, light.level + 8 * light.noise)
        grey = light.colour < _NEUTRAL * light.density.mean(0)
        usable = ~(black | grey | _ink(light.density, mpp))
        candidate = (light.colour > pale) & usable
        grown = _touching(candidate, (light.colour > sure) & usable)
        closed = _close(grown, self.close_um / mpp) & usable
        return _without_edge_fringes(closed, mpp)


def _measure(planes: Pixels, black: Mask, sigma_px: float) -> _Light:
    glass_colour, glass = _glass(planes, black)
    # 1 is added so that black has a density; it is far below the noise of bright pixels.
    table = -np.log10((np.arange(256, dtype=np.float32)[:, None] + 1) / (glass_colour + 1)).astype(np.float32)
    density = np.stack([table[:, channel][planes[channel]] for channel in range(3)])
    if sigma_px > 0.3:
        density = ndimage.gaussian_filter(density, (0, sigma_px, sigma_px), mode="nearest")
    colour = density.max(0) - density.min(0)
    if glass.sum() < 64:
        return _Light(density=density, colour=colour, level=0.0, noise=0.0)
    # The noise is taken from the lower half: pale tissue that was taken for glass lies in the upper one.
    low, level = np.percentile(colour[glass], (16, 50)).tolist()
    return _Light(density=density, colour=colour, level=level, noise=level - low)


def _glass(planes: Pixels, black: Mask) -> tuple[npt.NDArray[np.float32], Mask]:
    """Colour of empty glass, float32 (3,), and where it surely is.

    Glass is the brightest of what is frequent and nearly neutral. A picture without any (tissue from border to border)
    is measured against white.
    """
    high, low = planes.max(0), planes.min(0)
    neutral = ~black & (high - low < _GLASS_CHROMA) & (low > 150)
    if neutral.sum() < 0.002 * neutral.size:
        return np.array([245, 245, 245], np.float32), np.zeros(black.shape, bool)
    histogram = np.bincount(low[neutral], minlength=256).astype(float)
    frequent = ndimage.uniform_filter1d(histogram, 5, mode="constant")
    # Of all brightnesses that are at least a fifth as frequent as the most frequent one, the highest.
    brightest = int(np.flatnonzero(frequent >= 0.2 * frequent.max()).max())
    near = neutral & (low >= brightest - 12)
    return np.array([np.median(plane[near]) for plane in planes], np.float32), near


def _black_areas(planes: Pixels, mpp: float) -> Mask:
    """Unscanned black: dark areas wider than tissue is ever black, with a rim for the blur of their border."""
    dark = planes.max(0) < _BLACK
    if not dark.any():
        return np.zeros(dark.shape, bool)
    wide = ndimage.binary_opening(dark, iterations=_px(80, mpp)) | _at_border(dark)
    return np.asarray(ndimage.binary_dilation(wide, iterations=_px(16, mpp)), bool)


def _ink(density: npt.NDArray[np.float32], mpp: float) -> Mask:
    """Green and blue marker.

    Haematoxylin, eosin and DAB all take green light at least as much as the weakest other colour; green ink lets green
    through while it takes red and blue. Blue ink takes red most, and green far more than blue: haematoxylin takes green
    most. Red ink looks like blood and stays in; black ink has no colour and is no tissue anyway.
    """
    red, green, blue = density
    is_green = (np.minimum(red, blue) > 0.12) & (green < 0.7 * np.minimum(red, blue))
    is_blue = (red > 0.35) & (red > 1.15 * green) & (blue < 0.4 * red)
    found = is_green | is_blue
    core = ndimage.binary_opening(found, iterations=_px(_INK_UM / 2, mpp))
    if not core.any():
        return np.zeros(found.shape, bool)
    return np.asarray(ndimage.binary_dilation(_touching(found, core), iterations=_px(24, mpp)), bool)


def _touching(candidate: Mask, seed: Mask) -> Mask:
    """The connected parts of a mask that hold a seed."""
    labels, count = ndimage.label(candidate, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[labels[seed & candidate]] = True
    kept[0] = False
    return np.asarray(kept[labels], bool)


def _at_border(mask: Mask) -> Mask:
    frame = np.ones(mask.shape, bool)
    frame[1:-1, 1:-1] = False
    return _touching(mask, frame)


def _close(mask: Mask, width_px: float) -> Mask:
    """Close gaps with a disc, without growing into the picture's border."""
    radius = max(1, round(width_px / 2))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    padded = np.pad(mask, radius)
    closed: Any = ndimage.binary_closing(padded, x * x + y * y <= radius * radius)
    return np.asarray(closed[radius:-radius, radius:-radius], bool)


def _without_edge_fringes(mask: Mask, mpp: float) -> Mask:
    """Drop thin strips along the picture's border: the coloured fringe of the slide's edge, not tissue."""
    thick = ndimage.binary_opening(np.pad(mask, 1), iterations=_px(30, mpp))[1:-1, 1:-1]
    return mask & ~(_at_border(mask) & ~_touching(mask, np.asarray(thick, bool)))


def _px(um: float, mpp: float) -> int:
    return max(1, round(um / mpp))
