"""Whole-slide formats through OpenSlide."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histotl.core.errors import MissingDependencyError, SlideOpenError, SlideReadError
from histotl.core.provenance import file_digest
from histotl.core.registry import register
from histotl.core.units import round_px
from histotl.core.values import Level, SlideInfo
from histotl.wsi.readers._pixels import composite, one_line
from histotl.wsi.readers.base import Pixels, TiledLevel
from histotl.wsi.tiling import level_scale

if TYPE_CHECKING:
    from openslide import OpenSlide

SUFFIXES = frozenset(
    (
        *(".svs", ".tif", ".tiff"),  # Aperio, Philips, Trestle, Ventana, generic pyramids
        *(".ndpi", ".vms", ".vmu"),  # Hamamatsu
        *(".mrxs", ".scn", ".bif", ".svslide"),  # MIRAX, Leica, Ventana, Sakura
        *(".dcm", ".dicom"),
    )
)

_UNITS_UM = {"centimeter": 1e4, "inch": 25_400.0}
"""Micrometres in the unit of a TIFF resolution."""


@register("reader", "openslide")
@dataclass(frozen=True, kw_only=True)
class OpenSlideReader:
    """SVS, NDPI, MRXS, SCN, VMS, BIF, Philips, Trestle, DICOM and pyramidal TIFF, through OpenSlide."""

    priority: int = 100

    def claims(self, path: Path) -> bool:
        """By suffix: OpenSlide's own test opens the file, which is done soon enough."""
        return path.suffix.lower() in SUFFIXES

    def open(self, path: Path) -> OpenSlideBackend:
        """Open a slide; see :class:`histotl.wsi.readers.base.Reader`."""
        return OpenSlideBackend(path)


class OpenSlideBackend:
    """A slide held open by OpenSlide.

    Args:
        path: The file.

    Raises:
        SlideOpenError: OpenSlide cannot open it.
        MissingDependencyError: OpenSlide itself cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide: OpenSlide | None = _open(path)
        self._info = _describe(path, self._slide)

    @property
    def info(self) -> SlideInfo:
        """Geometry and pixel size as the file has them."""
        return self._info

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        """Decode a rectangle of one level; see :class:`histotl.wsi.readers.base.SlideBackend`."""
        from openslide import OpenSlideError

        if self._slide is None:
            self._slide = _open(self._path)
        scale_x, scale_y = level_scale(self._info, level)
        downsample = self._info.levels[level].downsample
        # OpenSlide uses one factor for both axes: name the pixel of the level by that factor.
        corner = (round_px(round_px(x_l0 / scale_x) * downsample), round_px(round_px(y_l0 / scale_y) * downsample))
        try:
            rgba = self._slide.read_region(corner, level, (width, height))
        except OpenSlideError as error:
            # The first error makes a handle useless for good; the next read gets a new one.
            self.close()
            where = f"region x={x_l0} y={y_l0} of level {level}"
            fact = f"{self._path.name}: {where} cannot be decoded: {one_line(error)}"
            raise SlideReadError(fact, hint="the file is damaged: copy or export it again") from error
        return composite(np.asarray(rgba), self._info.background)

    def tiled(self, level: int) -> TiledLevel | None:  # noqa: ARG002 - the contract's form
        """None: regions only."""
        return None

    def decoding(self, level: int) -> str:  # noqa: ARG002 - the contract's form
        """How a level is decoded, in words."""
        return self._info.reader

    def close(self) -> None:
        """Give the file back; calling twice does no harm."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None


def _open(path: Path) -> OpenSlide:
    try:
        import openslide
    except (ImportError, OSError) as error:
        cure = "pip install openslide-python openslide-bin"
        raise MissingDependencyError(f"OpenSlide cannot be loaded: {one_line(error)}", hint=cure) from error
    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        cure = "copy the file again from where it came; convert other formats to pyramidal TIFF"
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint=cure) from error


def _describe(path: Path, slide: OpenSlide) -> SlideInfo:
    properties = slide.properties
    width, height = slide.dimensions
    vendor = properties.get("openslide.vendor", "unknown")
    mpp_x, mpp_y, source = _pixel_size(properties, vendor)
    sizes = zip(slide.level_dimensions, slide.level_downsamples, strict=True)
    return SlideInfo(
        path=path,
        slide_id=path.stem,
        reader="openslide",
        vendor=vendor,
        width=width,
        height=height,
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        mpp_source=source,
        levels=tuple(Level(width=w, height=h, downsample=float(d)) for (w, h), d in sizes),
        bounds_l0=_bounds(properties, width, height),
        background=_background(properties),
        fingerprint=_fingerprint(path, properties),
    )


def _pixel_size(properties: Mapping[str, str], vendor: str) -> tuple[float, float, str]:
    """(mpp_x, mpp_y, where from); NaN and no source when the file does not say."""
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    if not (math.isnan(x) or math.isnan(y)):
        # For plain TIFF, OpenSlide's value is the resolution tag; the tag is what a person can look at and correct.
        from_tag = vendor == "generic-tiff" and "tiff.XResolution" in properties
        return x, y, "tiff.XResolution" if from_tag else "openslide.mpp-x"
    unit = _UNITS_UM.get(properties.get("tiff.ResolutionUnit", ""), math.nan)
    across, down = _number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution")
    # Vendors put other things into the resolution tags; only a plain TIFF is taken at its word.
    if vendor == "generic-tiff" and unit > 0 and across > 0 and down > 0:
        return unit / across, unit / down, "tiff.XResolution"
    return math.nan, math.nan, ""


def _number(properties: Mapping[str, str], key: str) -> float:
    try:
        return float(properties.get(key, ""))
    except ValueError:
        return math.nan


def _bounds(properties: Mapping[str, str], width: int, height: int) -> tuple[int, int, int, int]:
    """The scanned area, inside the slide; the whole slide where the format has no such thing."""
    keys = [f"openslide.bounds-{key}" for key in ("x", "y", "width", "height")]
    if any(math.isnan(_number(properties, key)) for key in keys):
        return 0, 0, width, height
    x, y, w, h = (int(_number(properties, key)) for key in keys)
    left, top = min(max(x, 0), width), min(max(y, 0), height)
    right, bottom = min(max(x + w, left), width), min(max(y + h, top), height)
    return (left, top, right - left, bottom - top) if right > left and bottom > top else (0, 0, width, height)


def _background(properties: Mapping[str, str]) -> tuple[int, int, int]:
    text = properties.get("openslide.background-color", "")
    try:
        r, g, b = bytes.fromhex(text)
    except ValueError:
        return 255, 255, 255
    return r, g, b


def _fingerprint(path: Path, properties: Mapping[str, str]) -> str:
    """Digest of the file, and of what stands for its companions in formats of many files."""
    parts = [file_digest(path), properties.get("openslide.quickhash-1", "")]
    index = path.with_suffix("") / "Slidedat.ini"
    if path.suffix.lower() == ".mrxs" and index.is_file():
        parts.append(file_digest(index))
        parts += [f"{data.name}:{data.stat().st_size}" for data in sorted(index.parent.glob("*.dat"))]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
