"""What a picture says of the light: optical densities against its own glass, and the noise of that glass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.wsi._counts import percentiles, tally
from histotl.wsi.readers.base import Pixels
from histotl.wsi.tissue._areas import Areas, diamond, px

Plane = npt.NDArray[np.uint8]
Density = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]

UNIT = 4000
"""Steps of the whole numbers that stand for a density of 1; a grey level is 7 or more, black on glass 9,600."""

_BLACK = 40
"""Pixels whose largest channel is below this were not imaged, or lie under opaque dirt."""

_GLASS_CHROMA = 30
"""Glass is neutral: its channels differ by less, of 255, even with a poor white balance."""

_GLASS_DARKEST = 150
"""Smallest channel above which a pixel may be glass."""

_ENOUGH = 400_000
"""Pixels that the colour of the glass is taken from; of larger pictures only every so many rows are looked at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """Optical densities of a picture, in steps of 1/``UNIT``.

    Args:
        density: ``-log10(I / I_glass)`` of red, green and blue, int16 (h, w) each, smoothed.
        colour: int16 (h, w), largest minus smallest density: 0 for glass, dirt and shadow, however dark.
        level: Median of ``colour`` on glass.
        noise: Standard deviation of ``colour`` on glass.
        black: bool (h, w): not imaged; None where nothing is.
    """

    density: tuple[Density, Density, Density]
    colour: Density
    level: float
    noise: float
    black: Mask | None


def measure(image: Pixels, *, sigma_px: float, mpp: float) -> Light:
    """Densities of a picture, uint8 RGB (h, w, 3), against its own glass.

    Args:
        image: The picture.
        sigma_px: Standard deviation of the Gaussian that densities are smoothed with; none below 0.3.
        mpp: µm per pixel.
    """
    import cv2

    red, green, blue = planes = cv2.split(image)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    black = _black_areas(high, mpp)
    rows = slice(None, None, min(len(image), max(1, high.size // _ENOUGH)))
    thinned = [plane[rows] for plane in planes]
    glass_colour, glass = _glass(thinned, high[rows], low[rows], None if black is None else black[rows])
    density = tuple(
        _smoothed(cv2.LUT(plane, _density_of_level(white)), sigma_px)
        for plane, white in zip(planes, glass_colour, strict=True)
    )
    colour = cv2.subtract(
        cv2.max(cv2.max(density[0], density[1]), density[2]), cv2.min(cv2.min(density[0], density[1]), density[2])
    )
    level, noise = _on_glass(colour[rows][glass])
    return Light(density=(density[0], density[1], density[2]), colour=colour, level=level, noise=noise, black=black)


def _density_of_level(white: float) -> Density:
    # 1 is added so that black has a density; it is far below the noise of bright pixels.
    density: Density = np.rint(-UNIT * np.log10((np.arange(256) + 1) / (white + 1))).astype(np.int16)
    return density


def _smoothed(plane: Density, sigma_px: float) -> Density:
    import cv2

    if sigma_px <= 0.3:
        return plane
    side = 2 * int(4 * sigma_px + 0.5) + 1
    smooth: Density = cv2.GaussianBlur(plane, (side, side), sigma_px, borderType=cv2.BORDER_REPLICATE)
    return smooth


def _on_glass(colour: Density) -> tuple[float, float]:
    """Median and standard deviation of the spread on glass; zeros where there is hardly any glass."""
    if len(colour) < 64:
        return 0.0, 0.0
    # The noise is taken from the lower half: pale tissue that was taken for glass lies in the upper one.
    low, level = percentiles(tally(colour), (16, 50))
    return level, level - low


def _glass(planes: list[Plane], high: Plane, low: Plane, black: Mask | None) -> tuple[list[float], Mask]:
    """Colour of empty glass, and where it surely is.

    Glass is the brightest of what is frequent and nearly neutral. A picture without any (tissue from border to border)
    is measured against white.
    """
    neutral = (high - low < _GLASS_CHROMA) & (low > _GLASS_DARKEST)
    if black is not None:
        neutral &= ~black
    counts = tally(low[neutral]).astype(np.float64)
    if counts.sum() < 0.002 * neutral.size:
        return [245.0] * 3, np.zeros(neutral.shape, bool)
    frequent = np.convolve(counts, np.full(5, 0.2), mode="same")
    # Of all brightnesses that are at least a fifth as frequent as the most frequent one, the highest.
    brightest = int(np.flatnonzero(frequent >= 0.2 * frequent.max()).max())
    near = neutral & (low >= brightest - 12)
    return [percentiles(tally(plane[near]), (50,))[0] for plane in planes], near


def _black_areas(high: Plane, mpp: float) -> Mask | None:
    """Unscanned black: dark areas wider than tissue is ever black, with a rim for the blur of their border."""
    dark = high < _BLACK
    if not dark.any():
        return None
    reach = px(80, mpp)
    areas = Areas(dark)
    wide = diamond(diamond(dark, -reach), reach) | areas.only(areas.at_border())
    return diamond(wide, px(16, mpp)) if wide.any() else None
