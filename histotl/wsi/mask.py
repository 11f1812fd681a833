"""Tissue of a slide as a mask and as outlines; the clean-up that is the same for all segmenters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.wsi._contours import Borders, Mask, Ring, midway_rings, trace
from histotl.wsi.readers.base import Pixels
from histotl.wsi.slide import Slide
from histotl.wsi.tiling import best_level, level_scale
from histotl.wsi.tissue.base import SeesLargeCoarser, TissueFile, TissueFinder

_NEAR_MPP = 0.9
"""A level is looked at as it is when its pixels have at least this share of the size that a segmenter asks for."""


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
        area_mm2: Area of the mask.
        image: uint8 RGB (h, w, 3): the picture of the slide that it was found on; None when it was not kept.
    """

    mask: Mask
    scale_l0: tuple[float, float]
    area_mm2: float
    image: Pixels | None = None

    @cached_property
    def polygons(self) -> tuple[Polygon, ...]:
        """Its outlines, from the largest piece to the smallest; drawn when first asked for, since tiles need none."""
        return outlines(self.mask, self.scale_l0)


def find_tissue(slide: Slide, finder: TissueFinder, *, min_area_um2: float, max_hole_um2: float) -> TissueMask:
    """Segment a slide, drop small pieces, fill small holes; or take what a file says as it is.

    Args:
        slide: An open slide.
        finder: Decides what is tissue, at the resolution that it asks for, or up to a tenth finer where the slide
            has a level of that or of half as large pixels.
        min_area_um2: Smallest piece that is kept, its filled holes included.
        max_hole_um2: Largest hole that is filled.

    Raises:
        SlideReadError: A region cannot be decoded.
        OutlineError: A file was to say where tissue is, and cannot be used.
        UsageError: An area is negative, or the mask has another shape than the picture.
    """
    for name, value in (("min_area_um2", min_area_um2), ("max_hole_um2", max_hole_um2)):
        if not value >= 0:
            raise UsageError(f"{name} is {value}", hint="give an area in µm², 0 or more")
    info = slide.info
    image, mpp = _picture(slide, finder)
    shape = image.shape[0], image.shape[1]
    found = finder.mask(info, shape) if isinstance(finder, TissueFile) else np.asarray(finder.segment(image, mpp))
    if found.shape != shape or found.dtype != np.bool_:
        fact = f"{type(finder).__name__} answered {found.dtype} {found.shape} for a picture of {shape}"
        raise UsageError(fact, hint="a segmenter gives bool of the picture's height and width")
    scale_l0 = (info.width / image.shape[1], info.height / image.shape[0])
    pixel_um2 = scale_l0[0] * info.mpp_x * scale_l0[1] * info.mpp_y
    if not isinstance(finder, TissueFile):
        found = clean(found, min_area_px=min_area_um2 / pixel_um2, max_hole_px=max_hole_um2 / pixel_um2)
    area_mm2 = float(np.count_nonzero(found)) * pixel_um2 / 1e6
    return TissueMask(mask=found, scale_l0=scale_l0, area_mm2=area_mm2, image=image)


def _picture(slide: Slide, finder: TissueFinder) -> tuple[Pixels, float]:
    """What a tissue finder sees of a slide, and its µm per pixel.

    A level that has nearly the pixels that it asks for is taken as it is, one with nearly half of them is halved; only
    others are resampled.
    """
    info, wanted = slide.info, finder.mpp
    if isinstance(finder, SeesLargeCoarser):
        wanted = finder.mpp_of(info.width * info.mpp_x, info.height * info.mpp_y)
    for times in (1, 2):
        index = best_level(info, wanted / times / info.mpp)
        scale_x, scale_y = level_scale(info, index)
        own = (info.mpp_x * scale_x + info.mpp_y * scale_y) / 2 * times
        if _NEAR_MPP * wanted <= own:
            return slide.whole_level(index, times), own
    return slide.thumbnail(wanted)


def clean(mask: Mask, *, min_area_px: float, max_hole_px: float) -> Mask:
    """Fill holes up to one area, then drop pieces below another.

    A hole is background that does not reach the picture's border. It is filled first, so that a ring of tissue around a
    small lumen counts as a whole.

    Args:
        mask: bool (h, w); not changed.
        min_area_px: Smallest piece that is kept.
        max_hole_px: Largest hole that is filled.
    """
    import cv2

    borders = trace(mask, corners_only=True)
    filled = _small_holes(borders, max_hole_px)
    area, whole = _areas_once_filled(borders, filled)
    dropped = whole & (area < min_area_px)
    result = np.array(mask, np.uint8, order="C")
    if filled.any() or dropped.any():
        seeds, boxes = borders.top() - borders.boxes()[:, :2], borders.boxes()
        for chosen, below, value, neighbours in ((filled, 1, 1, 4), (dropped, 0, 0, 8)):
            # Below the topmost tissue around a hole lies the hole.
            for (x, y), (left, top, right, bottom) in zip(seeds[chosen].tolist(), boxes[chosen].tolist(), strict=True):
                cv2.floodFill(result[top:bottom, left:right], None, (x, y + below), value, flags=neighbours)
    return result.view(np.bool_)


def _small_holes(borders: Borders, max_hole_px: float) -> Mask:
    """Which borders are those of holes to fill; tissue inside a hole is no part of it."""
    is_hole = borders.depth % 2 == 1
    size = borders.area_px.copy()
    inside = ~is_hole & (borders.parent >= 0)
    np.subtract.at(size, borders.parent[inside], borders.area_px[inside])
    small: Mask = is_hole & (size <= max_hole_px)
    return small


def _areas_once_filled(borders: Borders, filled: Mask) -> tuple[npt.NDArray[np.integer], Mask]:
    """Area of the tissue of every piece once its holes are filled, and which borders are then those of a whole piece.

    From the innermost borders outwards: an open hole takes all that lies inside it from the piece around it; a filled
    one takes only what its own pieces lack, since they are part of the piece around it from then on.
    """
    area, parent = borders.area_px.copy(), borders.parent
    lacking = np.where((borders.depth % 2 == 1) & ~filled, area, 0)
    for depth in range(int(borders.depth.max(initial=0)), 0, -1):
        at = np.flatnonzero(borders.depth == depth)
        if depth % 2 == 1:
            np.subtract.at(area, parent[at], lacking[at])
        else:
            at = at[filled[parent[at]]]
            np.add.at(lacking, parent[at], borders.area_px[at] - area[at])
    alone = (parent < 0) | ~filled[parent]
    return area, (borders.depth % 2 == 0) & alone


def outlines(mask: Mask, scale_l0: tuple[float, float]) -> tuple[Polygon, ...]:
    """Outlines of a mask's pieces in level-0 pixels, the largest piece first.

    They run midway between the pixel centres of tissue and background, and simplified ones leave that line by no more
    than 0.35 mask pixels. No ring crosses itself or another.

    Args:
        mask: bool (h, w).
        scale_l0: Level-0 pixels per mask pixel in x and y.
    """
    borders = trace(mask, corners_only=False)
    rings = [_closed(ring, scale_l0) for ring in midway_rings(borders)]
    pieces, holes = np.flatnonzero(borders.depth % 2 == 0), np.flatnonzero(borders.depth % 2 == 1)
    sizes, top = borders.area_px.copy(), borders.top()
    np.subtract.at(sizes, borders.parent[holes], sizes[holes])
    inner: dict[int, list[Ring]] = {index: [] for index in pieces.tolist()}
    for hole in holes[np.lexsort((top[holes, 0], top[holes, 1]))].tolist():
        inner[int(borders.parent[hole])].append(rings[hole])
    # Pieces of equal size come in the order of their topmost pixels.
    order = pieces[np.lexsort((top[pieces, 0], top[pieces, 1], -sizes[pieces]))].tolist()
    return tuple(Polygon(exterior=rings[index], holes=tuple(inner[index])) for index in order)


def _closed(ring: npt.NDArray[np.int32], scale_l0: tuple[float, float]) -> Ring:
    # Pixel centres lie half a pixel from the pixel's border.
    closed: Ring = (np.concatenate([ring, ring[:1]]) + 1) / 2 * scale_l0
    return closed


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


def _whole(ring: Ring, origin_l0: tuple[int, int]) -> list[list[int]]:
    # The package's one rounding rule, halves up, for all points at once.
    whole: list[list[int]] = (np.floor(ring + 0.5).astype(np.int64) - origin_l0).tolist()
    return whole
