"""The two decisions of opening a slide: which reader, and whether its pixel size can be trusted."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

from histotl.core.errors import MissingDependencyError, MppError, SlideOpenError
from histotl.core.registry import available, create, unavailable
from histotl.core.units import MPP_ANISOTROPY_MAX, MPP_MAX, MPP_MIN
from histotl.core.values import SlideInfo
from histotl.wsi.readers.base import Reader, SlideBackend

log = logging.getLogger(__name__)


def slide_name(path: Path) -> str:
    """The file's name without its suffix; ``.ome.tif`` and the like count as one suffix."""
    return path.stem.removesuffix(".ome") if path.suffix.lower() in (".tif", ".tiff") else path.stem


def first_that_opens(path: Path, wanted: str | None) -> tuple[Reader, SlideBackend]:
    """The reader that opens a file, and the open file.

    Args:
        path: The file.
        wanted: Spec of the one reader to try; None for all that claim the file.

    Raises:
        SlideOpenError: None can; the message gives every reader's reason.
    """
    if wanted is None:
        readers = [(name, cast("Reader", create("reader", name))) for name in available("reader")]
        readers.sort(key=lambda item: -item[1].priority)
    else:
        readers = [(wanted, cast("Reader", create("reader", wanted)))]
    reasons, cures = [], []
    for name, reader in readers:
        if wanted is None and not reader.claims(path):
            reasons.append(f"{name}: does not claim {path.suffix or 'files without suffix'}")
            continue
        try:
            return reader, reader.open(path)
        except (SlideOpenError, MissingDependencyError) as error:
            log.debug("%s cannot open %s: %s", name, path, error.message)
            reasons.append(f"{name}: {error.message.removeprefix(f'{path.name}: ')}")
            cures.append(error.hint)
    reasons += [f"{name}: cannot be used: {why}" for name, why in unavailable("reader").items() if wanted is None]
    cure = cures[-1] if cures and cures[-1] else "convert it to a pyramidal TIFF, or choose a reader with --reader"
    raise SlideOpenError(f"{path.name}: no reader can open it ({'; '.join(reasons)})", hint=cure)


def with_pixel_size(info: SlideInfo, mpp: float | None, source: str) -> SlideInfo:
    """The info with a pixel size that can be trusted: the override's, or else the file's own.

    Raises:
        MppError: It is missing, implausible, or differs between x and y.
    """
    if mpp is not None:
        info = replace(info, mpp_x=float(mpp), mpp_y=float(mpp), mpp_source=source)
    x, y, name = info.mpp_x, info.mpp_y, info.path.name
    cure = "give the true µm per pixel with --mpp-override, or in the manifest's column mpp"
    if not info.mpp_source or math.isnan(x) or math.isnan(y):
        raise MppError(f"{name}: the file does not say its pixel size", hint=cure)
    if not all(MPP_MIN <= value <= MPP_MAX for value in (x, y)):
        fact = f"{name}: pixel size {x:.6g} x {y:.6g} µm ({info.mpp_source}) is outside {MPP_MIN:g}-{MPP_MAX:g}"
        raise MppError(fact, hint=cure)
    if abs(x - y) > MPP_ANISOTROPY_MAX * min(x, y):
        fact = f"{name}: pixel size {x:.6g} x {y:.6g} µm ({info.mpp_source}) differs between x and y by over 5 %"
        raise MppError(fact, hint=cure)
    return info
