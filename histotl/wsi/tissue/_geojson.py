"""Areas of a GeoJSON file as QuPath and others write it, and masks of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from histotl.core.errors import OutlineError

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]

_NO_AREA = frozenset({"Point", "MultiPoint", "LineString", "MultiLineString"})
"""Marks and measures that lie beside outlines in the same file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Area:
    """One polygon of a file.

    Args:
        name: Of its class; empty when it has none.
        rings: float64 (k, 2) each, x and y in level-0 pixels: the outline, then its holes.
    """

    name: str
    rings: tuple[Ring, ...]

    def moved(self, by: tuple[int, int]) -> Area:
        """The same polygon farther right and down by so many pixels."""
        return Area(name=self.name, rings=tuple(ring + by for ring in self.rings))


def read_areas(path: Path) -> list[Area]:
    """All polygons of a file: a FeatureCollection, a bare list of features, a feature, or a geometry.

    Points and lines are passed over; MultiPolygons and GeometryCollections come as their parts.

    Raises:
        OutlineError: Not GeoJSON, or a polygon that cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise OutlineError(f"{path}: cannot be read: {error}", hint="export it again as GeoJSON") from error
    return [
        Area(name=name, rings=_rings(polygon, f"{path}: feature {number}"))
        for number, (name, geometry) in enumerate(_features(found, path))
        for polygon in _polygons(geometry, f"{path}: feature {number}")
    ]


def _features(found: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """(class, geometry) of every feature."""
    if isinstance(found, dict) and isinstance(found.get("features"), list):
        found = found["features"]
    for item in found if isinstance(found, list) else [found]:
        if not isinstance(item, dict) or not isinstance(item.get("type"), str):
            fact = f"{path}: not GeoJSON: {json.dumps(item)[:60]} stands where a feature should"
            raise OutlineError(fact, hint="export the annotations of the slide as GeoJSON")
        if item["type"] == "Feature":
            yield _class_of(item.get("properties")), item.get("geometry")
        else:
            yield "", item


def _class_of(properties: Any) -> str:
    """QuPath says ``{"classification": {"name": "Tumor", ...}}``, older files ``{"classification": "Tumor"}``."""
    found = properties.get("classification") if isinstance(properties, dict) else None
    name = found.get("name") if isinstance(found, dict) else found
    return name if isinstance(name, str) else ""


def _polygons(geometry: Any, where: str) -> Iterator[Any]:
    """Coordinates of the polygons of a geometry."""
    kind = geometry.get("type") if isinstance(geometry, dict) else geometry
    if kind is None or kind in _NO_AREA:
        return
    if kind == "Polygon":
        yield geometry.get("coordinates")
    elif kind == "MultiPolygon" and isinstance(geometry.get("coordinates"), list):
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        for part in geometry["geometries"]:
            yield from _polygons(part, where)
    else:
        raise OutlineError(f"{where} is a {kind!r}, not a polygon", hint="export areas as GeoJSON polygons")


def _rings(polygon: Any, where: str) -> tuple[Ring, ...]:
    try:
        rings = tuple(np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in polygon)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise OutlineError(f"{where}: its coordinates are not numbers", hint="export the outlines again") from error
    for ring in rings:
        if len(ring) < 3 or not np.isfinite(ring).all():
            fact = f"{where}: a ring has {len(ring)} points" if len(ring) < 3 else f"{where}: a point is not finite"
            raise OutlineError(fact, hint="correct or delete this outline")
    if not rings:
        raise OutlineError(f"{where}: a polygon without rings", hint="correct or delete this outline")
    return rings


def draw(areas: Iterable[Area], shape: tuple[int, int], scale_l0: tuple[float, float]) -> Mask:
    """Where any of some areas is: pixels whose centres lie inside.

    Inside is what an odd number of lines separates from the outside, so holes are left out, and an outline that crosses
    itself encloses its loops but not where they overlap.

    Args:
        areas: In level-0 pixels.
        shape: (height, width) of the mask, which covers the whole slide.
        scale_l0: Level-0 pixels per mask pixel in x and y.
    """
    mask = np.zeros(shape, bool)
    for area in areas:
        rings = [ring / scale_l0 for ring in area.rings]
        low, high = (how([how(ring, axis=0) for ring in rings], axis=0) for how in (np.min, np.max))
        left, top = np.clip(np.floor(low).astype(np.int64), 0, shape[::-1]).tolist()
        right, bottom = np.clip(np.ceil(high).astype(np.int64), 0, shape[::-1]).tolist()
        if right > left and bottom > top:
            box = mask[top:bottom, left:right]
            box |= _inside([ring - (left, top) for ring in rings], box.shape)
    return mask


def _inside(rings: Sequence[Ring], shape: tuple[int, ...]) -> Mask:
    """Pixels whose centres an odd number of lines separates from what lies to their left."""
    height, width = shape
    crossings = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        x, y = ring.T
        onwards_x, onwards_y = np.roll(x, -1), np.roll(y, -1)
        # A line crosses the rows whose centres lie between its ends: the upper one counts, the lower one does not.
        first, last = (
            np.clip(np.ceil(how(y, onwards_y) - 0.5).astype(np.int64), 0, height) for how in (np.minimum, np.maximum)
        )
        count = last - first
        line = np.repeat(np.arange(len(ring)), count)
        row = np.arange(len(line)) - np.repeat(np.cumsum(count) - count, count) + first[line]
        part = (row + 0.5 - y[line]) / (onwards_y - y)[line]
        at = x[line] + part * (onwards_x - x)[line]
        column = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)
        np.bitwise_xor.at(crossings, (row, column), 1)
    inside: Mask = np.bitwise_xor.accumulate(crossings, axis=1)[:, :width].view(np.bool_)
    return inside
