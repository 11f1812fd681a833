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
import numpy.typing as npt

from histotl.core.errors import NotBrightfieldError, SlideReadError
from histotl.core.units import round_px
from histotl.wsi._counts import percentiles, tally
from histotl.wsi.readers.base import Pixels, SlideBackend
from histotl.wsi.tiling import level_scale

_WHOLE_PX, _LEAST_PX = 2_000_000, 30_000
"""A level up to the first size is looked at as a whole: the smallest one with at least the second."""

_WINDOWS, _WINDOW_PX = 6, 192
"""Larger ones by 6 x 6 windows of 192 pixels a side."""

_TILES, _TILE_PX = 4, 512
"""Or by 4 x 4 of their own tiles where these are at most so large: each is decoded once, and whole."""

_ENOUGH = 40_000
"""Pixels, about, that are judged: of more than that, every so many rows."""

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
    if np.count_nonzero(imaged) < 16:
        return ""
    brightness = tally(high)
    (spread,) = percentiles(tally((high - low)[imaged]), (99.9,))
    darkest, brightest = percentiles(_above(brightness, _IMAGED), (1, 99))
    if spread <= 3 and brightest - darkest > 40:
        return "all three channels are equal (a single channel)"
    lit = _above(brightness, _LIT)
    if lit.sum() < 16:
        return ""
    black = 1 - float(lit.sum()) / len(high)
    brightest_lit = high >= percentiles(lit, (95,))[0]
    paleness = np.median(low[brightest_lit] / high[brightest_lit])
    if paleness < (0.4 if black > 0.5 else 0.25) and black >= 0.2:
        return f"{black:.0%} of it is black and the brightest parts are strongly coloured (fluorescence)"
    return ""


def _above(counts: npt.NDArray[np.intp], level: int) -> npt.NDArray[np.intp]:
    """Counts of grey levels, with those up to one left out."""
    return np.where(np.arange(len(counts)) > level, counts, 0)


def _sample(backend: SlideBackend) -> Pixels:
    """Pixels of the whole slide, uint8 (n, 3): a small level as it is, or windows spread over the smallest."""
    levels = backend.info.levels
    sizes = [level.width * level.height for level in levels]
    small = [index for index, pixels in enumerate(sizes) if pixels <= _WHOLE_PX]
    if small:
        enough = [index for index in small if sizes[index] >= _LEAST_PX]
        index = min(enough, key=sizes.__getitem__) if enough else max(small, key=sizes.__getitem__)
        return _thinned([backend.read_region(0, 0, index, levels[index].width, levels[index].height)])
    coarsest = min(range(len(levels)), key=sizes.__getitem__)
    level, (scale_x, scale_y) = levels[coarsest], level_scale(backend.info, coarsest)
    tiles = backend.tiled(coarsest)
    if tiles is not None and max(tiles.tile_size) <= _TILE_PX:
        columns = _spread(level.width, tiles.tile_size[0], _TILES, whole_tiles=True)
        rows = _spread(level.height, tiles.tile_size[1], _TILES, whole_tiles=True)
    else:
        columns = _spread(level.width, _WINDOW_PX, _WINDOWS, whole_tiles=False)
        rows = _spread(level.height, _WINDOW_PX, _WINDOWS, whole_tiles=False)
    return _thinned(
        [
            backend.read_region(round_px(left * scale_x), round_px(top * scale_y), coarsest, width, height)
            for top, height in rows
            for left, width in columns
        ]
    )


def _spread(length: int, side: int, count: int, *, whole_tiles: bool) -> list[tuple[int, int]]:
    """Begin and length of at most so many intervals spread evenly over a line, from its beginning to its end."""
    if whole_tiles:
        last = (length - 1) // side
        begins = [round_px(index * last / (count - 1)) * side for index in range(count)]
    else:
        begins = [int(index / (count - 1) * max(length - side, 0)) for index in range(count)]
    return [(begin, min(side, length - begin)) for begin in dict.fromkeys(begins)]


def _thinned(pictures: list[Pixels]) -> Pixels:
    pixels = sum(picture.shape[0] * picture.shape[1] for picture in pictures)
    every = max(1, pixels // _ENOUGH)
    return np.concatenate([picture[::every].reshape(-1, 3) for picture in pictures])
