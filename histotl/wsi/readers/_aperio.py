"""Aperio slides whose every level can be decoded directly: described without OpenSlide.

OpenSlide reads and hashes the whole smallest level of a slide when it opens it, which takes longer than all the rest of
opening, and megabytes over a network. The format is simple: an Aperio slide is a TIFF whose first page is tiled and
described as Aperio's, its levels are its tiled pages in the order of the file, and its pixel size stands in the
description as ``MPP``. Whatever is not just so is left to OpenSlide, whose answer is the same.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from histotl.core.values import Level, SlideInfo
from histotl.wsi.readers._describe import APERIO_MPP, fingerprint
from histotl.wsi.readers._direct import LevelPlan, plan_pages
from histotl.wsi.readers._ifd import TiffFormatError, TiffPage, tiff_index

_SIGN = "Aperio"
"""What the description begins with."""


def aperio_slide(path: Path) -> tuple[SlideInfo, list[LevelPlan]] | None:
    """What OpenSlide would say of an Aperio slide, and how to read its levels; None for everything else."""
    try:
        index = tiff_index(path)
    except (TiffFormatError, OSError):
        return None
    mpp = _pixel_size(index.description)
    is_plain = index.starts_tiled and index.is_flat and index.is_little
    if not (is_plain and index.description.startswith(_SIGN) and mpp > 0):
        return None
    if not all(b.width < a.width and b.height < a.height for a, b in pairwise(index.pages)):
        return None
    first = index.pages[0]
    info = SlideInfo(
        path=path,
        slide_id=path.stem,
        reader="openslide",
        vendor="aperio",
        width=first.width,
        height=first.height,
        mpp_x=mpp,
        mpp_y=mpp,
        mpp_source=APERIO_MPP,
        levels=tuple(_level(page, first) for page in index.pages),
        bounds_l0=(0, 0, first.width, first.height),
        fingerprint=fingerprint(path, "aperio", {}),
    )
    plans = plan_pages(path, info, index.pages)
    # Where one level needs OpenSlide, it is to be the judge of all.
    return (info, plans) if all(plan.decoder is not None for plan in plans) else None


def _pixel_size(description: str) -> float:
    """µm per pixel in ``… |MPP = 0.2520|…``; NaN where it is not said."""
    found = math.nan
    for part in description.split("|")[1:]:
        name, equals, value = part.partition("=")
        if equals and name.strip() == "MPP":
            try:
                found = float(value)
            except ValueError:
                found = math.nan
    return found if math.isfinite(found) else math.nan


def _level(page: TiffPage, first: TiffPage) -> Level:
    downsample = (first.width / page.width + first.height / page.height) / 2
    return Level(width=page.width, height=page.height, downsample=downsample)
