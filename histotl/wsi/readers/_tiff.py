"""Plain and OME TIFF through tifffile: what OpenSlide does not read."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from histotl.core.errors import NotBrightfieldError, SlideOpenError, SlideReadError
from histotl.wsi.readers._codecs import Unsuitable, decoder_for
from histotl.wsi.readers._files import FilePerThread
from histotl.wsi.readers._ifd import page_of
from histotl.wsi.readers._pixels import composite, one_line
from histotl.wsi.readers._tiled import CURE_DAMAGED, TiffTiles, TileRegions
from histotl.wsi.readers.base import Pixels

DECODE_ERRORS = (
    *(tifffile.TiffFileError, struct.error, zlib.error),
    *(ValueError, TypeError, OSError, RuntimeError, EOFError),
)
"""What tifffile and its codecs raise on damaged files; the codecs' own errors are RuntimeErrors."""

_UNITS_UM = {
    "nm": 1e-3,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek mu
    "\\u00B5m": 1.0,  # as ImageJ writes it
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "inch": 25_400.0,
}
"""Micrometres in the units that OME and ImageJ write."""


class PageCodec:
    """Tiles that only tifffile's own decoders read, among them palettes and transparency; as RGB.

    Args:
        page: Of tifffile.
        background: RGB under transparency.
    """

    def __init__(self, page: Any, background: tuple[int, int, int]) -> None:
        self._page, self._background = page, background

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        """Decode a tile; raises what :data:`DECODE_ERRORS` names."""
        page = self._page
        try:
            segment, _, _ = page.decode(data, 0, jpegtables=page.jpegtables, _fullsize=True)
        except DECODE_ERRORS as error:
            raise ValueError(one_line(error)) from error
        if segment is None:
            raise ValueError("it is empty")
        pixels = to_rgb(page, segment[0, ..., 0] if page.photometric == 3 else segment[0])
        pixels = composite(pixels, self._background) if pixels.shape[2] == 4 else pixels
        if out is None:
            return pixels
        out[:] = pixels
        return out


class TiffLevel:
    """One level of a TIFF: RGB regions of a page, decoding no more than is asked for where the file allows.

    Args:
        page: Of tifffile.
        file: The file.
        background: RGB of tiles that were never written, and under transparency.
        share: Keeps the one decoded copy of a page that has to be decoded as a whole.
    """

    def __init__(
        self,
        page: Any,
        file: FilePerThread,
        background: tuple[int, int, int],
        share: Callable[[str, Callable[[], Pixels]], Pixels],
    ) -> None:
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self._page, self._file, self._background, self._share = page, file, background, share
        self.tiles: TiffTiles | None = None
        self.words = "through tifffile: not tiled"
        if page.is_tiled and page.planarconfig == 1:
            self.tiles, self.words = _tiles(page, file, background)
        elif page.is_tiled:
            self.words = "through tifffile: planar configuration 2"
        self._regions = None if self.tiles is None else TileRegions(self.tiles, background)

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        """RGB of a rectangle inside the level.

        Raises:
            SlideReadError: It cannot be decoded.
        """
        name = self._file.path.name
        try:
            region = self._region(left, top, width, height)
        except (*DECODE_ERRORS, SlideReadError) as error:
            fact = f"{name}: region x={left} y={top} ({width}x{height} px) cannot be decoded"
            why, cure = one_line(error), CURE_DAMAGED
            if isinstance(error, SlideReadError):
                why, cure = error.message.removeprefix(f"{name}: "), error.hint
            raise SlideReadError(f"{fact}: {why}", hint=cure) from error
        return composite(region, self._background) if region.shape[2] == 4 else np.array(region)

    def _region(self, left: int, top: int, width: int, height: int) -> Pixels:
        found = None if self._regions is None else self._regions.read(left, top, width, height)
        if found is not None:
            return found
        page = self._page
        pixels: Pixels
        if page.is_memmappable and page.planarconfig == 1 and page.photometric == 2:
            pixels = np.memmap(self._file.path, np.uint8, "r", page.dataoffsets[0], page.shape)
        else:
            # Strips are as wide as the picture: decoding a tile's strips for each tile reads everything many times.
            pixels = self._share(f"page at {page.offset}", lambda: to_rgb(page, page.asarray()))
        return pixels[top : top + height, left : left + width]


def _tiles(page: Any, file: FilePerThread, background: tuple[int, int, int]) -> tuple[TiffTiles, str]:
    """The tiles of a page, and how they are decoded in words."""
    plain = page_of(page)
    try:
        decoder = decoder_for(plain, file.read)
    except Unsuitable as answer:
        words = f"direct: {plain.tile_width}×{plain.tile_height} with tifffile's decoder, for {answer}"
        return TiffTiles(plain, file, PageCodec(page, background)), words
    return TiffTiles(plain, file, decoder.codec), f"direct: {decoder.words}"


def open_levels(tif: Any, name: str) -> list[Any]:
    """Pages that are the levels of the first picture in the file, finest first.

    Raises:
        NotBrightfieldError: One channel, or channels kept as separate pictures.
        SlideOpenError: More than 8 bits, or a compression or colour model that cannot be decoded.
    """
    levels = tif.series[0].levels
    pages = [level.keyframe for level in levels]
    axes = levels[0].axes
    channels = dict(zip(axes, levels[0].shape, strict=True)).get("C", 1)
    if channels > 1:
        fact = f"{name}: not brightfield RGB: {channels} channels as separate pictures (axes {axes})"
        raise NotBrightfieldError(fact, hint="leave this slide out of the run")
    for page in pages:
        _check_page(page, name)
    return pages


def _check_page(page: Any, name: str) -> None:
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if page.samplesperpixel not in (3, 4) and photometric != "PALETTE":
        fact = f"{name}: not brightfield RGB: {page.samplesperpixel} channel(s), {photometric}"
        raise NotBrightfieldError(fact, hint="leave this slide out of the run")
    if page.dtype != np.uint8:
        raise SlideOpenError(f"{name}: pixels are {page.dtype}", hint="export it with 8 bits a channel")
    # JPEG tiles in YCbCr are decoded to RGB by their codec; other codecs leave YCbCr as it is.
    known = photometric in ("RGB", "PALETTE") or (photometric == "YCBCR" and page.compression in (6, 7, 33003, 33007))
    if not known:
        raise SlideOpenError(f"{name}: colour model {photometric} is not supported", hint="export it as RGB")
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        fact = f"{name}: unknown TIFF compression {int(page.compression)}"
        raise SlideOpenError(fact, hint="export it with JPEG, deflate or LZW compression")


def to_rgb(page: Any, pixels: npt.NDArray[Any]) -> Pixels:
    """A decoded page as uint8 (h, w, 3 or 4): channels last, palette colours looked up."""
    if page.photometric == 3:
        # Colour maps hold 16 bits a channel.
        table = (page.colormap >> 8).astype(np.uint8).T
        return np.ascontiguousarray(table[pixels])
    if page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    return np.ascontiguousarray(pixels)


def pixel_size(tif: Any, page: Any) -> tuple[float, float, str]:
    """(mpp_x, mpp_y, where from) by OME metadata, ImageJ's unit or the resolution tags; NaN when not said."""
    if tif.is_ome:
        x, y = (_ome_length(tif.ome_metadata or "", axis) for axis in "XY")
        if x > 0 and y > 0:
            return x, y, "OME PhysicalSizeX"
    if "XResolution" not in page.tags or "YResolution" not in page.tags:
        return math.nan, math.nan, ""
    unit, source = math.nan, "tiff.XResolution"
    if tif.is_imagej:
        unit, source = _UNITS_UM.get(str((tif.imagej_metadata or {}).get("unit", "")), math.nan), "ImageJ unit"
    elif "ResolutionUnit" in page.tags:
        unit = {2: 25_400.0, 3: 1e4}.get(int(page.tags["ResolutionUnit"].value), math.nan)
    (x_num, x_den), (y_num, y_den) = page.tags["XResolution"].value, page.tags["YResolution"].value
    if math.isnan(unit) or 0 in (x_num, y_num):
        return math.nan, math.nan, ""
    return unit * x_den / x_num, unit * y_den / y_num, source


def _ome_length(xml: str, axis: str) -> float:
    value = re.search(rf'PhysicalSize{axis}="([^"]+)"', xml)
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
    try:
        return float(value.group(1)) * _UNITS_UM.get(unit.group(1) if unit else "µm", math.nan) if value else math.nan
    except ValueError:
        return math.nan
