"""What OpenSlide says of a slide, as a :class:`histotl.core.values.SlideInfo`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from histotl.core.provenance import file_digest
from histotl.core.values import Level, SlideInfo

if TYPE_CHECKING:
    from openslide import OpenSlide

APERIO_MPP = "aperio.MPP"
"""Key of the pixel size in the description of an Aperio slide."""

_UNITS_UM = {"centimeter": 1e4, "inch": 25_400.0}
"""Micrometres in the unit of a TIFF resolution."""


def describe(path: Path, slide: OpenSlide) -> SlideInfo:
    """Geometry, pixel size and identity of an open slide."""
    properties = slide.properties
    width, height = slide.dimensions
    vendor = properties.get("openslide.vendor", "unknown")
    mpp_x, mpp_y, source = pixel_size(properties, vendor)
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
        bounds_l0=bounds(properties, width, height),
        background=background(properties),
        fingerprint=fingerprint(path, vendor, properties),
    )


def pixel_size(properties: Mapping[str, str], vendor: str) -> tuple[float, float, str]:
    """(mpp_x, mpp_y, where from); NaN and no source when the file does not say."""
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    if vendor == "aperio" and x == y == _number(properties, APERIO_MPP):
        return x, y, APERIO_MPP
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


def bounds(properties: Mapping[str, str], width: int, height: int) -> tuple[int, int, int, int]:
    """The scanned area, inside the slide; the whole slide where the format has no such thing."""
    keys = [f"openslide.bounds-{key}" for key in ("x", "y", "width", "height")]
    if any(math.isnan(_number(properties, key)) for key in keys):
        return 0, 0, width, height
    x, y, w, h = (int(_number(properties, key)) for key in keys)
    left, top = min(max(x, 0), width), min(max(y, 0), height)
    right, bottom = min(max(x + w, left), width), min(max(y + h, top), height)
    return (left, top, right - left, bottom - top) if right > left and bottom > top else (0, 0, width, height)


def background(properties: Mapping[str, str]) -> tuple[int, int, int]:
    """RGB of what was never scanned; white where the format has no such thing."""
    text = properties.get("openslide.background-color", "")
    try:
        r, g, b = bytes.fromhex(text)
    except ValueError:
        return 255, 255, 255
    return r, g, b


def fingerprint(path: Path, vendor: str, properties: Mapping[str, str]) -> str:
    """Digest of the file, and of what stands for its companions in formats of many files.

    An Aperio slide is one file, so it does without OpenSlide's hash, which reads a whole level.
    """
    parts = [file_digest(path), "" if vendor == "aperio" else properties.get("openslide.quickhash-1", "")]
    index = path.with_suffix("") / "Slidedat.ini"
    if path.suffix.lower() == ".mrxs" and index.is_file():
        parts.append(file_digest(index))
        parts += [f"{data.name}:{data.stat().st_size}" for data in sorted(index.parent.glob("*.dat"))]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
