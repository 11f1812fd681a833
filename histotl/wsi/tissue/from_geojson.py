"""Tissue as somebody has drawn it: outlines from QuPath or another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from histotl.core.errors import OutlineError
from histotl.core.provenance import file_digest
from histotl.core.registry import register
from histotl.core.values import SlideInfo
from histotl.wsi.tissue._files import file_of
from histotl.wsi.tissue._geojson import Mask, draw, read_areas
from histotl.wsi.tissue._settings import check_mpp, check_path


@register("tissue", "from_geojson")
@dataclass(frozen=True, kw_only=True)
class FromGeojson:
    """Outlines drawn by hand, read from GeoJSON files as QuPath exports them; kept as they are, holes too.

    Coordinates are level-0 pixels, y down. QuPath shows a MIRAX slide from the corner of its scanned area: say
    ``origin='bounds'`` for outlines that were drawn there.

    Args:
        path: The file, or the folder in which every slide has its ``<slide>.geojson``.
        classes: Names of the classes that count as tissue; all areas when empty, those without a class too.
        leave_out: Names of classes that are cut out of these, such as artefacts.
        origin: Where 0, 0 lies: at the corner of the ``slide`` or of its scanned area (``bounds``).
        mpp: Resolution of the mask, µm per pixel.
    """

    path: str
    classes: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    origin: Literal["slide", "bounds"] = "slide"
    mpp: float = 8.0

    def __post_init__(self) -> None:
        check_mpp("from_geojson", self.mpp)
        check_path("from_geojson", self.path)

    def digest(self, info: SlideInfo) -> str:
        """Of the slide's file; see :class:`histotl.wsi.tissue.base.TissueFile`."""
        return file_digest(self._file(info), whole=True)

    def mask(self, info: SlideInfo, shape: tuple[int, int]) -> Mask:
        """What the slide's file outlines; see :class:`histotl.wsi.tissue.base.TissueFile`.

        Raises:
            OutlineError: The slide has no file, the file cannot be read, or it has none of the classes.
        """
        path = self._file(info)
        areas = read_areas(path)
        there = sorted({area.name for area in areas if area.name})
        if self.classes and not any(area.name in self.classes for area in areas):
            fact = f"{path} has no area of class {' or '.join(map(repr, self.classes))}"
            seen = f"it has {', '.join(map(repr, there))}" if there else "its areas have no classes"
            raise OutlineError(f"{fact}; {seen}", hint="correct classes=(…), or leave this slide out")
        if not areas:
            raise OutlineError(f"{path} has no areas", hint="draw the tissue and export it, or leave this slide out")
        kept = [area for area in areas if area.name not in self.leave_out]
        cut = [area for area in areas if area.name in self.leave_out]
        scale_l0 = info.width / shape[1], info.height / shape[0]
        if self.origin == "bounds":
            kept, cut = ([area.moved(info.bounds_l0[:2]) for area in some] for some in (kept, cut))
        mask = draw([area for area in kept if not self.classes or area.name in self.classes], shape, scale_l0)
        return mask & ~draw(cut, shape, scale_l0)

    def _file(self, info: SlideInfo) -> Path:
        return file_of(Path(self.path), info, (".geojson", ".json"))
