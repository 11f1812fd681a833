"""Tissue of a slide as a mask and as outlines; the clean-up that is the same for all segmenters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import measure

from histotl.core.errors import UsageError
from histotl.core.units import round_px
from histotl.wsi.slide import Slide
from histotl.wsi.tissue.base import TissueSegmenter

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]

_SIMPLIFY_PX = 0.5
"""Outlines leave the mask's own border by no more than half a mask pixel."""

_EIGHT = np.ones((3, 3), bool)
"""Tissue hangs together over corners; holes, its complement, do not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Polygon:
    """One piece of tissue.

    Args:
        exterior: float64 (k, 2): x and y in level-0 pixels; the last point is the first again.
        holes: Rings of the same form.
    """

    exterior: Ring
    holes: tuple[Ring, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueMask:
    """Where the tissue of a slide is.

    Args:
        mask: bool (h, w), True on tissue; covers the whole slide.
        scale_l0: Level-0 pixels per mask pixel in x and y.
        polygons: Its outlines, from the largest piece to the smallest.
        area_mm2: Area of the mask.
    """

    mask: Mask
    scale_l0: tuple[float, float]
    polygons: tuple[Polygon, ...]
    area_mm2: float


def find_tissue(slide: Slide, segmenter: TissueSegmenter, *, min_area_um2: float, max_hole_um2: float) -> TissueMask:
    """Segment a slide, drop small pieces, fill small holes.

    Args:
        slide: An open slide.
        segmenter: Decides what is tissue, at the resolution that it asks for.
        min_area_um2: Smallest piece that is kept, its filled holes included.
        max_hole_um2: Largest hole that is filled.

    Raises:
        SlideReadError: A region cannot be decoded.
        UsageError: An area is negative, or the segmenter's mask has another shape than the picture.
    """
    for name, value in (("min_area_um2", min_area_um2), ("max_hole_um2", max_hole_um2)):
        if not value >= 0:
            raise UsageError(f"{name} is {value}", hint="give an area in µm², 0 or more")
    info = slide.info
    image, mpp = slide.thumbnail(segmenter.mpp)
    found = np.asarray(segmenter.segment(image, mpp))
    if found.shape != image.shape[:2] or found.dtype != np.bool_:
        fact = f"{type(segmenter).__name__} answered {found.dtype} {found.shape} for a picture of {image.shape[:2]}"
        raise UsageError(fact, hint="a segmenter gives bool of the picture's height and width")
    scale_l0 = (info.width / image.shape[1], info.height / image.shape[0])
    pixel_um2 = scale_l0[0] * info.mpp_x * scale_l0[1] * info.mpp_y
    mask = clean(found, min_area_px=min_area_um2 / pixel_um2, max_hole_px=max_hole_um2 / pixel_um2)
    return TissueMask(
        mask=mask,
        scale_l0=scale_l0,
        polygons=outlines(mask, scale_l0),
        area_mm2=float(mask.sum()) * pixel_um2 / 1e6,
    )


def clean(mask: Mask, *, min_area_px: float, max_hole_px: float) -> Mask:
    """Fill holes up to one area, then drop pieces below another.

    A hole is background that does not reach the picture's border. It is filled first, so that a ring of tissue around a
    small lumen counts as a whole.
    """
    holes, count = ndimage.label(~mask)
    size = np.bincount(holes.ravel(), minlength=count + 1)
    filled = size <= max_hole_px
    filled[0] = False
    for border in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        filled[border] = False
    whole = mask | filled[holes]
    pieces, count = ndimage.label(whole, _EIGHT)
    kept = np.bincount(pieces.ravel(), minlength=count + 1) >= min_area_px
    kept[0] = False
    result: Mask = kept[pieces]
    return result


def outlines(mask: Mask, scale_l0: tuple[float, float]) -> tuple[Polygon, ...]:
    """Outlines of a mask's pieces in level-0 pixels, the largest piece first.

    Args:
        mask: bool (h, w).
        scale_l0: Level-0 pixels per mask pixel in x and y.
    """
    pieces, count = ndimage.label(mask, _EIGHT)
    boxes = ndimage.find_objects(pieces)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    # A stable sort: pieces of equal size stay in the order of the scan.
    order = np.argsort(-sizes, kind="stable").tolist()
    return tuple(_outline(pieces[boxes[index]] == index + 1, boxes[index], scale_l0) for index in order)


def _outline(piece: Mask, box: tuple[slice, slice], scale_l0: tuple[float, float]) -> Polygon:
    """Rings of one piece, given as the mask of its bounding box."""
    corner = (box[1].start - 1, box[0].start - 1)
    # With the padding all that lies outside the piece is one area; its label is 1, since labels follow the scan.
    gaps, _ = ndimage.label(~np.pad(piece, 1))
    holes = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(gaps), start=1):
        if label > 1:
            hole = np.pad(gaps[rows, columns] == label, 1)
            holes.append(
                _ring(hole, (corner[0] + columns.start - 1, corner[1] + rows.start - 1), scale_l0, joins="low")
            )
    return Polygon(exterior=_ring(gaps != 1, corner, scale_l0, joins="high"), holes=tuple(holes))


def to_geojson(mask: TissueMask, *, name: str, origin_l0: tuple[int, int] = (0, 0)) -> str:
    """Outlines as a GeoJSON FeatureCollection that QuPath and TRIDENT open: whole level-0 pixels, y down.

    Args:
        mask: The tissue.
        name: Of the collection, usually the slide's.
        origin_l0: Where the reader of the file has its origin. QuPath shows a MIRAX slide from the corner of its
            scanned area: give the first two of ``SlideInfo.bounds_l0`` for it.
    """
    features = [
        {
            "type": "Feature",
            "properties": {
                "tissue_id": index,
                "objectType": "annotation",
                "classification": {"name": "Tissue", "color": [0, 114, 178]},
            },
            "geometry": {
                "type": "Polygon",
                "coordinates": [_whole(ring, origin_l0) for ring in (polygon.exterior, *polygon.holes)],
            },
        }
        for index, polygon in enumerate(mask.polygons)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    return json.dumps({"type": "FeatureCollection", "name": name, "crs": crs, "features": features})


def _ring(area: Mask, shift: tuple[int, int], scale_l0: tuple[float, float], *, joins: Literal["low", "high"]) -> Ring:
    """The border of one area without holes, as a closed ring of x and y in level-0 pixels.

    Args:
        area: bool (h, w), False along its border.
        shift: Column and row of its first pixel in the mask.
        scale_l0: Level-0 pixels per mask pixel.
        joins: ``high``: the area hangs together over corners; ``low``: what surrounds it does.
    """
    contours = measure.find_contours(area.astype(np.float32), 0.5, fully_connected=joins)  # type: ignore[no-untyped-call]
    longest = max(contours, key=len)
    simple = measure.approximate_polygon(longest, _SIMPLIFY_PX)  # type: ignore[no-untyped-call]
    if len(simple) < 4:
        simple = longest
    # Contours run between pixel centres, which lie half a pixel from the pixel's border.
    return np.asarray((simple[:, ::-1] + 0.5 + shift) * scale_l0, np.float64)


def _whole(ring: Ring, origin_l0: tuple[int, int]) -> list[list[int]]:
    return [[round_px(x) - origin_l0[0], round_px(y) - origin_l0[1]] for x, y in ring.tolist()]
