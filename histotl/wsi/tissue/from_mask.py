"""Tissue as a picture says it: masks made by another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from histotl.core.errors import OutlineError
from histotl.core.provenance import file_digest
from histotl.core.registry import register
from histotl.core.values import SlideInfo
from histotl.wsi.tissue._files import file_of
from histotl.wsi.tissue._settings import check_mpp, check_path

Mask = npt.NDArray[np.bool_]

_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".npy")

_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_PIXELS_OFF = 1.5
"""How far, in pixels of the mask, its sides may be from the proportions of the slide."""


@register("tissue", "from_mask")
@dataclass(frozen=True, kw_only=True)
class FromMask:
    """Masks of another tool: one picture a slide that covers all of it, at any scale; kept as they are.

    Args:
        path: The file (PNG, TIFF, BMP or ``.npy``), or the folder in which every slide has its ``<slide>.png`` or so.
        labels: Grey levels that count as tissue; all but 0 when empty.
        mpp: Resolution of the mask, µm per pixel, that it is brought to.
    """

    path: str
    labels: tuple[int, ...] = ()
    mpp: float = 8.0

    def __post_init__(self) -> None:
        check_mpp("from_mask", self.mpp)
        check_path("from_mask", self.path)

    def digest(self, info: SlideInfo) -> str:
        """Of the slide's file; see :class:`histotl.wsi.tissue.base.TissueFile`."""
        return file_digest(self._file(info), whole=True)

    def mask(self, info: SlideInfo, shape: tuple[int, int]) -> Mask:
        """What the slide's picture says; see :class:`histotl.wsi.tissue.base.TissueFile`.

        Raises:
            OutlineError: The slide has no file, or it cannot be read, is no grey picture, or has other proportions.
        """
        import cv2

        path = self._file(info)
        levels = _levels(path)
        height, width = levels.shape
        zoom = max(height / info.height, width / info.width)
        if max(abs(info.height * zoom - height), abs(info.width * zoom - width)) > _PIXELS_OFF:
            fact = f"{path} has {width}x{height} px, which is not the shape of a slide of {info.width}x{info.height} px"
            raise OutlineError(fact, hint="give a mask of the whole slide")
        tissue = np.isin(levels, self.labels) if self.labels else levels != 0
        # The share of tissue in each pixel of the new mask, or the nearest pixel of a coarser one.
        how = cv2.INTER_AREA if height >= shape[0] else cv2.INTER_NEAREST_EXACT
        share = cv2.resize(tissue.view(np.uint8) * np.uint8(255), shape[::-1], interpolation=how)
        return np.asarray(share) >= 128

    def _file(self, info: SlideInfo) -> Path:
        return file_of(Path(self.path), info, _SUFFIXES)


def _levels(path: Path) -> npt.NDArray[np.generic]:
    """Grey levels or labels (h, w)."""
    levels: npt.NDArray[np.generic]
    try:
        if path.suffix.lower() == ".npy":
            levels = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                levels = np.asarray(picture)
    except _PILLOW_ERRORS as error:
        raise OutlineError(f"{path}: cannot be read: {error}", hint="export the mask again, as PNG") from error
    if levels.ndim == 3 and all(np.array_equal(levels[..., 0], levels[..., channel]) for channel in (1, 2)):
        levels = levels[..., 0]  # grey, stored as colour
    if levels.ndim != 2 or levels.dtype.kind not in "biu":
        fact = f"{path}: a mask has one whole number a pixel; this is {levels.dtype} {levels.shape}"
        raise OutlineError(fact, hint="export it as a grey or black-and-white picture")
    return levels
