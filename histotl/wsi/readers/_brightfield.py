"""Is this a brightfield RGB slide? Judged from pixels, since metadata rarely says.

Stain takes light away, so in brightfield the brightest pixels are the palest. Fluorescence is the reverse: on black,
the brightest pixels are the most coloured. The two refusals:

- **One channel**: all three channels are equal everywhere although there is contrast.
- **Dark field**: at least a fifth of the picture is near black, and of what is lit the brightest twentieth is strongly
  coloured: the median of smallest/largest channel is below 0.25 (0.4 where more than half is black).

Measured: a DAPI slide has 0.00; painted two- and three-colour fluorescence below 0.05; the most saturated of 1,669 H&E
patches 0.31, with nothing black. A brightfield slide that is underexposed, or has black borders, keeps pale pixels as
its brightest and passes; so does an empty one.
"""

from __future__ import annotations

import numpy as np

from histotl.core.errors import NotBrightfieldError, SlideReadError
from histotl.core.units import round_px
from histotl.wsi.readers.base import Pixels, SlideBackend
from histotl.wsi.tiling import level_scale

_WHOLE_PX = 2_000_000
"""A level up to this size is looked at as a whole."""

_WINDOWS, _WINDOW_PX = 6, 192
"""Larger ones by 6 x 6 windows of 192 pixels a side."""

_IMAGED, _LIT = 8, 32
"""Largest channel above which a pixel was imaged at all, and is lit."""


def check_brightfield(backend: SlideBackend, name: str) -> None:
    """Refuse what is not brightfield RGB.

    Args:
        backend: The open slide.
        name: Of the slide, for the message.

    Raises:
        NotBrightfieldError: Fluorescence, or one channel stored as three.
    """
    try:
        pixels = _sample(backend)
    except SlideReadError:
        return  # unreadable regions are reported where they are needed, not where they are sampled
    fault = fault_of(pixels)
    if fault:
        raise NotBrightfieldError(f"{name}: not brightfield RGB: {fault}", hint="leave this slide out of the run")


def fault_of(pixels: Pixels) -> str:
    """Why pixels, uint8 (n, 3), are not brightfield RGB; empty when they are."""
    planes = np.ascontiguousarray(pixels.T)
    high, low = planes.max(0), planes.min(0)
    imaged = high > _IMAGED
    if imaged.sum() < 16:
        return ""
    spread = np.percentile((high - low)[imaged], 99.9)
    darkest, brightest = np.percentile(high[imaged], (1, 99))
    if spread <= 3 and brightest - darkest > 40:
        return "all three channels are equal (a single channel)"
    lit = high > _LIT
    if lit.sum() < 16:
        return ""
    black = 1 - lit.mean()
    brightest_lit = high >= np.percentile(high[lit], 95)
    paleness = np.median(low[brightest_lit] / high[brightest_lit])
    if paleness < (0.4 if black > 0.5 else 0.25) and black >= 0.2:
        return f"{black:.0%} of it is black and the brightest parts are strongly coloured (fluorescence)"
    return ""


def _sample(backend: SlideBackend) -> Pixels:
    """Pixels of the whole slide, uint8 (n, 3): a small level as it is, or windows spread over the smallest."""
    levels = backend.info.levels
    small = [index for index, level in enumerate(levels) if level.width * level.height <= _WHOLE_PX]
    if small:
        level = levels[small[0]]
        return backend.read_region(0, 0, small[0], level.width, level.height).reshape(-1, 3)
    coarsest = min(range(len(levels)), key=lambda index: levels[index].width * levels[index].height)
    level, (scale_x, scale_y) = levels[coarsest], level_scale(backend.info, coarsest)
    width, height = min(_WINDOW_PX, level.width), min(_WINDOW_PX, level.height)
    windows = []
    for part_y in np.linspace(0, 1, _WINDOWS):
        for part_x in np.linspace(0, 1, _WINDOWS):
            x_l0 = round_px(int(part_x * (level.width - width)) * scale_x)
            y_l0 = round_px(int(part_y * (level.height - height)) * scale_y)
            windows.append(backend.read_region(x_l0, y_l0, coarsest, width, height).reshape(-1, 3))
    return np.concatenate(windows)
