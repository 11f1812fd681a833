"""Slides that may be wrong though tiles could be cut: who looks at a thousand slides looks at these first.

A slide whose mask is empty fails with :class:`histotl.core.errors.NoTissueError`. One whose mask covers nearly all that
was scanned, or next to nothing of it, goes on and is flagged: in its coordinates file, in ``flags.csv``, in the summary
of the run and on the terminal. So is one whose stain could not be estimated, where the normaliser has a fallback.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Final

import numpy as np

from histotl.core.errors import StoreError
from histotl.core.values import SlideEntry, SlideInfo, TileSpec
from histotl.embed._tables import read_rows, write_rows
from histotl.store import layout
from histotl.store.coords import CoordsFile, read_coords
from histotl.wsi.mask import TissueMask

log = logging.getLogger(__name__)

FLAGS_FILE = "flags.csv"

FULL, EMPTY, SMALL = "nearly_full", "nearly_empty", "far_less_than_others"
STAIN = "stain_fallback"

_FULL_SHARE = 0.95
"""Glass surrounds tissue on nearly every slide: a mask that covers more has probably taken it for tissue."""

_EMPTY_SHARE, _EMPTY_MM2 = 0.001, 0.05
"""A mask of less than this share of what was scanned, or than a few tiles, has probably missed the tissue."""

_SMALL_SHARE, _FEWEST = 0.01, 5
"""A slide with less than this share of the run's median area stands out, where so many slides can be compared."""

_HINTS: Final[Mapping[str, str]] = {
    FULL: "look at its picture in contours/: if glass is in it, give another --tissue; a crop of tissue may be right",
    EMPTY: "look at its picture in contours/: if tissue is missing, give another --tissue or outlines of your own",
    SMALL: "look at its picture in contours/: if tissue is missing, give another --tissue or outlines of your own",
    STAIN: "look at the slide: features of one stain, or of next to no tissue, mean little; leave it out of training",
}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Something about a slide that a person should look at.

    Args:
        slide_id: Its name.
        path: Its file.
        flag: Which kind: ``nearly_full``, ``nearly_empty``, ``far_less_than_others`` or ``stain_fallback``.
        message: What was seen, beginning with the slide's name.
        hint: What to do.
    """

    slide_id: str
    path: str
    flag: str
    message: str
    hint: str


def mask_flags(mask: TissueMask, info: SlideInfo) -> tuple[str, ...]:
    """What is odd about a mask by itself, by name.

    Args:
        mask: The tissue of a slide.
        info: The slide; only the part that was scanned counts.
    """
    left, top, width, height = info.bounds_l0
    x, y = mask.scale_l0
    scanned = mask.mask[round(top / y) : round((top + height) / y), round(left / x) : round((left + width) / x)]
    if not scanned.size:
        return ()
    share = float(np.count_nonzero(scanned)) / scanned.size
    if share > _FULL_SHARE:
        return (FULL,)
    return (EMPTY,) if share < _EMPTY_SHARE or mask.area_mm2 < _EMPTY_MM2 else ()


def record_flags(
    out: Path,
    spec: TileSpec,
    entries: Sequence[SlideEntry],
    *,
    failed: Collection[str] = (),
    fallbacks: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Flag, ...]:
    """Gather the flags of a run's slides, and write ``out/flags.csv``, or remove an old one when there are none.

    They are read back from the coordinates files rather than remembered: so slides that were skipped, or planned by
    another process, count too.

    Args:
        out: Output folder of the run.
        spec: Of the tiles.
        entries: Slides of the run. What earlier runs recorded for other slides stays.
        failed: Names of those that failed; they stand in another table.
        fallbacks: Slides that were not normalised by their own stain -> what was done in its place, and why.
    """
    seen: list[tuple[SlideEntry, CoordsFile]] = []
    for entry in entries:
        path = layout.coords_path(out, spec, entry.slide_id)
        if entry.slide_id in failed or not path.is_file():
            continue
        try:
            seen.append((entry, read_coords(path)))
        except StoreError as error:
            log.warning("no flags are known of it: %s", error.message)
    usual = _usual_area([found for _, found in seen])
    flags = [flag for entry, found in seen for flag in _flags_of(entry, found, usual)]
    flags += [_flag(entry, STAIN, fallbacks[entry.slide_id]) for entry in entries if entry.slide_id in fallbacks]
    here = {entry.slide_id for entry in entries}
    kept = [row for row in read_rows(out / FLAGS_FILE, Flag) if row.slide_id not in here]
    write_rows(out / FLAGS_FILE, Flag, [*flags, *kept])
    return tuple(flags)


def _usual_area(found: Sequence[CoordsFile]) -> float:
    areas = [file.tissue_mm2 for file in found if file.tissue_mm2 is not None]
    return median(areas) if len(areas) >= _FEWEST else 0.0


def _flags_of(entry: SlideEntry, found: CoordsFile, usual: float) -> list[Flag]:
    area = found.tissue_mm2
    if area is None:
        return []
    facts = {
        FULL: f"the tissue mask covers nearly all that was scanned ({area:.3g} mm²)",
        EMPTY: f"the tissue mask is nearly empty ({area:.3g} mm²)",
        SMALL: f"{area:.3g} mm² of tissue, where half of the slides of this run have {usual:.3g} or more",
    }
    names = [name for name in found.flags if name in facts]
    if area < _SMALL_SHARE * usual:
        names.append(SMALL)
    return [_flag(entry, name, facts[name]) for name in names]


def _flag(entry: SlideEntry, name: str, fact: str) -> Flag:
    slide = entry.slide_id
    return Flag(slide_id=slide, path=str(entry.path), flag=name, message=f"{slide}: {fact}", hint=_HINTS[name])
