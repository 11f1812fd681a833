"""What a picture says of the light: optical densities against its own glass, and the noise of that glass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.wsi._counts import percentiles, tally
from histotl.wsi.readers.base import Pixels

Plane = npt.NDArray[np.uint8]
Density = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]

_FINE = 4000
"""Steps of the whole numbers that stand for a density of 1 while it is measured; a grey level is 7 or more."""

_BLACK = 40
"""Pixels whose largest channel is below this were not imaged, or lie under opaque dirt."""

_GLASS_CHROMA = 30
"""Glass is neutral: its channels differ by less, of 255, even with a poor white balance."""

_GLASS_DARKEST = 150
"""Smallest channel above which a pixel may be glass."""

_NEUTRAL = 10
"""Where the least density is this many times the spread, something grey is dense: black ink, a particle."""

_DENSE = 0.2
"""Least density above which something grey is dense; thinner shadows have no colour that could pass for tissue."""

_INK_WEAKER, _INK_RED = 0.12, 0.35
"""Least densities of ink: of green ink the smaller one in red and in blue, of blue ink and over tissue that in red."""

_LEAST_SIGMA_PX = 0.3
"""Gaussians below this change nothing worth the time."""

_BAND_PX = 130_000
"""Pixels that are worked on at a time, so that what lies between picture and result stays in the processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """The spread of the optical densities ``-log10(I / I_glass)`` of a picture, and what it must not be judged by.

    Args:
        colour: uint8 (h, w): largest minus smallest density in the steps asked for; 0 for glass, dirt and shadow,
            however dark, and 255 for all that is more.
        level: Median of ``colour`` on glass.
        noise: Standard deviation of ``colour`` on glass.
        dark: bool (h, w): not imaged, or under opaque dirt.
        grey: bool (h, w): dense but without colour: black ink, a particle.
        inked: bool (h, w): of the colour of green or blue ink.
    """

    colour: Plane
    level: float
    noise: float
    dark: Mask
    grey: Mask
    inked: Mask


def measure(image: Pixels, *, steps: float, sigma_px: float, every: int) -> Light:
    """Colour density of a picture against its own glass.

    Args:
        image: uint8 RGB (h, w, 3).
        steps: Of ``colour`` to a density of 1.
        sigma_px: Standard deviation of the Gaussian that densities are smoothed with; none below 0.3.
        every: Of so many rows one is looked at for the glass.
    """
    import cv2

    shape, rows = image.shape[:2], slice(None, None, every)
    white, glass = _glass(image[rows])
    tables = [_table(level) for level in white]
    colour, on_glass = np.empty(shape, np.uint8), []
    dark, grey, inked = (np.empty(shape, bool) for _ in range(3))
    bands = list(_bands(shape, every, whole=sigma_px > _LEAST_SIGMA_PX))
    work = np.empty((6, bands[0].stop, shape[1]), np.int16)  # once: new memory for every step costs more than the step
    for band in bands:
        planes = _planes(image[band])
        dark[band] = _is_dark(planes)
        red, green, blue, weaker, least, spread = work[:, : len(planes[0])]
        for plane, table, density in zip(planes, tables, (red, green, blue), strict=True):
            _densities(plane, table, sigma_px, density)
        np.minimum(np.minimum(red, blue, out=weaker), green, out=least)
        np.maximum(np.maximum(red, green, out=spread), blue, out=spread)
        spread -= least
        cv2.convertScaleAbs(spread, dst=colour[band], alpha=steps / _FINE)
        on_glass.append(spread[::every][glass[band.start // every :][: -(-len(spread) // every)]])
        grey[band] = _is_grey(spread, least)
        inked[band] = _is_inked(red, green, blue, weaker)
    level, noise = (value * steps / _FINE for value in _median_and_noise(np.concatenate(on_glass)))
    return Light(colour=colour, level=level, noise=noise, dark=dark, grey=grey, inked=inked)


def _bands(shape: tuple[int, ...], every: int, *, whole: bool) -> Iterator[slice]:
    """Rows to work on at a time, a multiple of some number; all of them when each row depends on others."""
    height = shape[0] if whole else max(1, _BAND_PX // shape[1] // every) * every
    for top in range(0, shape[0], height):
        yield slice(top, min(top + height, shape[0]))


def _table(white: float) -> Density:
    # 1 is added so that black has a density; it is far below the noise of bright pixels. Nothing is lighter than glass:
    # what is in one channel has been coloured by a JPEG block that holds an edge of tissue, and would widen its rim.
    light = np.minimum((np.arange(256) + 1) / (white + 1), 1)
    density: Density = np.rint(-_FINE * np.log10(light)).astype(np.int16)
    return density


def _planes(image: Pixels) -> list[Plane]:
    import cv2

    return [np.asarray(plane, np.uint8) for plane in cv2.split(image)]


def _is_dark(planes: list[Plane]) -> Mask | bool:
    import cv2

    # Hardly any picture has a dark pixel, and red is what tissue absorbs least.
    return planes[0].min() < _BLACK and cv2.max(cv2.max(planes[0], planes[1]), planes[2]) < _BLACK


def _densities(plane: Plane, table: Density, sigma_px: float, into: Density) -> None:
    """Densities of one channel, smoothed."""
    import cv2

    if sigma_px <= _LEAST_SIGMA_PX:
        cv2.LUT(plane, table, dst=into)
        return
    side = 2 * int(4 * sigma_px + 0.5) + 1
    cv2.GaussianBlur(cv2.LUT(plane, table), (side, side), sigma_px, dst=into, borderType=cv2.BORDER_REPLICATE)


def _is_grey(spread: Density, least: Density) -> Mask:
    # A quick look first, which few pixels pass: a tenth of the least density is less than an eighth.
    maybe: Mask = spread < least >> 3
    maybe &= least > int(_DENSE * _FINE)
    places = np.flatnonzero(maybe)
    if len(places):
        maybe.ravel()[places] = spread.ravel()[places].astype(np.int32) * _NEUTRAL < least.ravel()[places]
    return maybe


def _is_inked(red: Density, green: Density, blue: Density, weaker: Density) -> Mask:
    """Green and blue marker.

    Haematoxylin, eosin and DAB all take green light at least as much as the weakest other colour; green ink lets green
    through while it takes red and blue. Blue ink takes red most, and green far more than blue: haematoxylin takes green
    most. Over tissue, which adds its own, green ink still leaves far more red than green taken, as no stain of H&E
    does. Red ink looks like blood and stays in; black ink has no colour and is no tissue anyway.

    Args:
        red: int16 (h, w), density in red; ``green`` and ``blue`` likewise.
        green: In green.
        blue: In blue.
        weaker: The smaller one of ``red`` and ``blue``.
    """
    # A quick look first, which few pixels of tissue pass: both inks take more red than green.
    maybe: Mask = red > green
    maybe &= red > int(_INK_WEAKER * _FINE)
    places = np.flatnonzero(maybe)
    if len(places):
        r, g, b, rb = (plane.ravel()[places].astype(np.float32) for plane in (red, green, blue, weaker))
        is_green = (rb > _INK_WEAKER * _FINE) & (g < 0.7 * rb)
        is_blue = (r > _INK_RED * _FINE) & (r > 1.15 * g) & (b < 0.4 * r)
        is_over_tissue = (r > _INK_RED * _FINE) & (r > 1.3 * g) & (b >= 0.4 * r)
        maybe.ravel()[places] = is_green | is_blue | is_over_tissue
    return maybe


def _median_and_noise(spread: Density) -> tuple[float, float]:
    """Median and standard deviation of the spread on glass; zeros where there is hardly any glass."""
    if len(spread) < 64:
        return 0.0, 0.0
    # The noise is taken from the lower half: pale tissue that was taken for glass lies in the upper one.
    low, level = percentiles(tally(spread), (16, 50))
    return level, level - low


def _glass(image: Pixels) -> tuple[list[float], Mask]:
    """Colour of empty glass, and where it surely is.

    Glass is the brightest of what is frequent and nearly neutral. A picture without any (tissue from border to border)
    is measured against white.
    """
    planes = _planes(image)
    low = np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    high = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
    neutral = (high - low < _GLASS_CHROMA) & (low > _GLASS_DARKEST)
    counts = _counts(low, neutral)
    if counts.sum() < 0.002 * neutral.size:
        return [245.0] * 3, np.zeros(neutral.shape, bool)
    frequent = np.convolve(counts, np.ones(5), mode="same")
    # Of all brightnesses that are at least a fifth as frequent as the most frequent one, the highest.
    brightest = int(np.flatnonzero(frequent >= 0.2 * frequent.max()).max())
    near = neutral & (low >= brightest - 12)
    return [percentiles(_counts(plane, near), (50,))[0] for plane in planes], near


def _counts(plane: Plane, where: Mask) -> npt.NDArray[np.int64]:
    """How often each grey level occurs in a part of a plane."""
    import cv2

    return cv2.calcHist([plane], [0], where.view(np.uint8), [256], (0, 256)).ravel().astype(np.int64)
