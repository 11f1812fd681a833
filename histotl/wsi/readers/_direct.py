"""Which levels of a slide have tiles that can be decoded without OpenSlide, giving the same pixels.

OpenSlide stays the judge of geometry and metadata, but for Aperio's simple format
(:mod:`histotl.wsi.readers._aperio`). A level is read directly where a tiled page of the TIFF is that level and
OpenSlide shows its pixels as they are; where there is any doubt, the level has a reason instead.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histotl.core.values import Level, SlideInfo
from histotl.wsi.readers._codecs import FACTORS, Decoder, Unsuitable, decoder_for
from histotl.wsi.readers._ifd import TiffFormatError, TiffPage, page_of, tiled_pages
from histotl.wsi.readers._pixels import one_line

_NOT_DIRECT = {
    "mirax": "MIRAX keeps its tiles in .dat files",
    "ventana": "tiles overlap (Ventana)",
    "leica": "a Leica SCN level is made of several areas",
    "sakura": "Sakura keeps its tiles in a database",
    "dicom": "DICOM",
}
"""Vendor as OpenSlide calls it -> why its tiles are not read directly."""

_SAME_SCALE = 0.01
"""Levels whose downsamples differ by less serve for each other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelPlan:
    """How to read one level directly.

    Args:
        page: The page that is the level; None where there is none.
        decoder: Of that page.
        reason: Why there is none.
        real: Index of the level of the file that it is read from.
        factor: How many times that level is shrunk while decoding.
    """

    page: TiffPage | None = None
    decoder: Decoder | None = None
    reason: str = ""
    real: int = 0
    factor: int = 1


def plan_levels(path: Path, info: SlideInfo, properties: Mapping[str, str]) -> list[LevelPlan]:
    """A plan for every level of the slide.

    Args:
        path: The file.
        info: What OpenSlide says of it.
        properties: OpenSlide's properties.
    """
    why = _NOT_DIRECT.get(info.vendor, "")
    if info.vendor == "trestle" and set(properties.get("trestle.overlaps", "").split()) - {"0"}:
        why = "tiles overlap (Trestle)"
    if why:
        return _none(info, why)
    try:
        pages = _ndpi_pages(path) if info.vendor == "hamamatsu" else tiled_pages(path)
    except (TiffFormatError, OSError) as error:
        return _none(info, f"its TIFF structure is not understood: {one_line(error)}")
    return plan_pages(path, info, pages)


def plan_pages(path: Path, info: SlideInfo, pages: Sequence[TiffPage]) -> list[LevelPlan]:
    """The same where the tiled pages of the file are known."""
    with path.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        plans = []
        holes = np.zeros((0, 4))
        for index, level in enumerate(info.levels):
            try:
                page = _philips_page(index, info, pages) if info.vendor == "philips" else _page_of(level, pages)
                if info.vendor == "aperio":
                    page, holes = _without_doubtful(page, holes)
                plans.append(LevelPlan(page=page, decoder=decoder_for(page, read), real=index))
            except Unsuitable as answer:
                plans.append(LevelPlan(reason=str(answer), real=index))
    return plans


def _none(info: SlideInfo, why: str) -> list[LevelPlan]:
    return [LevelPlan(reason=why, real=index) for index in range(len(info.levels))]


def _page_of(level: Level, pages: Sequence[TiffPage]) -> TiffPage:
    """The page that is a level: the one tiled page of its size."""
    found = [page for page in pages if (page.width, page.height) == (level.width, level.height)]
    if len(found) != 1:
        number = f"{len(found)} tiled pages" if found else "no tiled page"
        raise Unsuitable(f"{number} of {level.width}×{level.height} px in the file")
    return found[0]


def _without_doubtful(page: TiffPage, holes: npt.NDArray[np.float64]) -> tuple[TiffPage, npt.NDArray[np.float64]]:
    """A page of an Aperio pyramid without the tiles that OpenSlide does not show as they are.

    A tile of no bytes comes from an encoder that failed there, so OpenSlide distrusts what coarser levels have at the
    same place, and shows the finer level instead. Which tiles it does so for is taken generously here (a pixel is added
    on all sides), so that the others are certain.

    Args:
        page: Of this level.
        holes: Missing or doubtful places of the next finer level, (n, 4): left, top, right, bottom as parts of the
            picture's width and height.

    Returns:
        The page with the byte counts of doubtful tiles set to 0, and its own holes.
    """
    rows, columns = page.shape
    if len(page.counts) != rows * columns:
        return page, holes
    counts = page.counts.reshape(rows, columns).copy()
    side = np.array([page.tile_width, page.tile_height] * 2) / np.array([page.width, page.height] * 2)
    margin = np.array([-1, -1, 1, 1]) / np.array([page.tile_width, page.tile_height] * 2)
    for left, top, right, bottom in holes / side + margin:
        counts[max(0, math.floor(top)) : math.ceil(bottom), max(0, math.floor(left)) : math.ceil(right)] = 0
    row, column = np.nonzero(counts == 0)
    if not len(row):
        return page, holes
    return replace(page, counts=counts.ravel()), np.stack([column, row, column + 1, row + 1], axis=1) * side


def _philips_page(index: int, info: SlideInfo, pages: Sequence[TiffPage]) -> TiffPage:
    """The page that is a level of a Philips TIFF, which fills the last tiles; OpenSlide cuts that off."""
    if len(pages) != len(info.levels):
        raise Unsuitable(f"{len(pages)} tiled pages for {len(info.levels)} levels")
    page, level = pages[index], info.levels[index]
    if not (
        0 <= page.width - level.width < 2 * page.tile_width and 0 <= page.height - level.height < 2 * page.tile_height
    ):
        fact = f"page {index} of {page.width}×{page.height} px"
        raise Unsuitable(f"{fact} does not fit to a level of {level.width}×{level.height} px")
    return page


def _ndpi_pages(path: Path) -> list[TiffPage]:
    """Pages of a Hamamatsu NDPI whose one JPEG has restart markers, which cut it into tiles.

    NDPI bends the TIFF format (64-bit offsets in 32-bit fields, a table of its own for the markers), so tifffile reads
    it; that costs more than the plain parser, for which such files are too few to care.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tif:
            return [page_of(page) for page in tif.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
    except (tifffile.TiffFileError, ValueError, RuntimeError, struct.error, IndexError, KeyError) as error:
        raise TiffFormatError(one_line(error)) from error


def with_scaled_levels(info: SlideInfo, plans: Sequence[LevelPlan]) -> tuple[SlideInfo, list[LevelPlan]]:
    """The same slide with a level for each size that libjpeg's scaled inverse transform can give.

    A level is added where none lies within 1 % of its scale; of several ways to make it, the one that decodes least is
    taken. Parts of a pixel at the right and lower border are dropped.
    """
    levels = list(zip(info.levels, plans, strict=True))
    for factor in FACTORS:
        for real, plan in zip(info.levels, plans, strict=True):
            if plan.decoder is None or plan.decoder.scaled is None:
                continue
            width, height = real.width // factor, real.height // factor
            level = Level(width=width, height=height, downsample=real.downsample * factor)
            near = (abs(level.downsample / other.downsample - 1) < _SAME_SCALE for other, _ in levels)
            if min(width, height) >= 1 and not any(near):
                levels.append((level, replace(plan, factor=factor)))
    levels.sort(key=lambda pair: pair[0].downsample)
    return replace(info, levels=tuple(level for level, _ in levels)), [plan for _, plan in levels]
