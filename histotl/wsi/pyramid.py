"""Write an RGB image as a tiled JPEG pyramid that OpenSlide and every whole-slide viewer open.

Two flavours: a plain pyramidal TIFF (OpenSlide vendor ``generic-tiff``, pixel size in the resolution tags) and an
Aperio SVS (vendor ``aperio``, pixel size in the image description). The demo and the tests paint slides with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, TypedDict

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from histotl.core.atomic import atomic_path
from histotl.core.errors import UsageError
from histotl.core.units import nominal_magnification, round_px

Pixels = NDArray[np.uint8]
Vendor = Literal["generic-tiff", "aperio"]
VENDORS: Final = ("generic-tiff", "aperio")

_SOFTWARE = "histotl"
_CHROMA: Final = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}

_STRIP_BYTES = 16 * 2**20
"""Input held as a Pillow copy at a time while a level is made; bounds the memory on large slides."""

_BIGTIFF_BYTES = 2**31
"""Raw size above which 64-bit TIFF offsets are used; JPEG stays far below it, noise at quality 100 may not."""


class _Page(TypedDict):
    """What all pages of one file share."""

    tile: tuple[int, int]
    compressionargs: dict[str, int]
    subsampling: tuple[int, int]


def pyramid_factors(width: int, height: int, *, step: float = 4.0, min_side_px: int = 256) -> tuple[float, ...]:
    """Downsample factors 1, step, step², … for as long as the shorter side of the level stays large enough.

    Args:
        width: Level-0 width in pixels.
        height: Level-0 height in pixels.
        step: Factor between two levels, above 1.
        min_side_px: Smallest allowed shorter side of any level but the first.

    Raises:
        UsageError: `step` is not above 1.
    """
    if not step > 1.0:
        raise UsageError(f"pyramid step is {step}, it must be above 1", hint="use step=2 or step=4")
    factors = [1.0]
    while min(width, height) / (factors[-1] * step) >= min_side_px:
        factors.append(factors[-1] * step)
    return tuple(factors)


def shrink(image: Pixels, width: int, height: int) -> Pixels:
    """Shrink a whole image to a given size with an antialiasing (Hamming) filter.

    The result covers exactly the field of view of the input, whatever the ratio: pixel ``i`` lies over the input
    interval ``[i * w_in / width, (i + 1) * w_in / width)``. Works in strips, so that a large image is not copied.

    Args:
        image: uint8, (h, w, 3).
        width: Width of the result in pixels.
        height: Height of the result in pixels.

    Returns:
        uint8, (height, width, 3).
    """
    h_in, w_in = image.shape[:2]
    if (w_in, h_in) == (width, height):
        return image
    out = np.empty((height, width, 3), np.uint8)
    scale = h_in / height
    margin = math.ceil(scale) + 1  # the Hamming filter reaches one output pixel to either side
    rows = max(1, int(_STRIP_BYTES / (w_in * 4) / scale))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(0, math.floor(top * scale) - margin)
        last = min(h_in, math.ceil(bottom * scale) + margin)
        strip = Image.fromarray(np.ascontiguousarray(image[first:last]))
        box = (0.0, top * scale - first, float(w_in), min(bottom * scale - first, float(last - first)))
        out[top:bottom] = np.asarray(strip.resize((width, bottom - top), Image.Resampling.HAMMING, box=box))
    return out


def write_pyramid(
    path: str | os.PathLike[str],
    image: Pixels,
    *,
    mpp: float,
    levels: Sequence[float | Pixels] = (1, 4, 16),
    tile_px: int = 256,
    quality: int = 90,
    subsampling: Literal["444", "422", "420"] = "420",
    vendor: Vendor = "generic-tiff",
) -> Path:
    """Write an image as a tiled, pyramidal JPEG TIFF under its final name in one step.

    Args:
        path: File to write (``.tiff`` or ``.svs``); folders are made as needed. Appears only when it is whole.
        image: Level 0, uint8 RGB, (h, w, 3).
        mpp: Pixel size of level 0 in µm, written so that OpenSlide reports it as ``openslide.mpp-x``.
        levels: One entry a level, the first is 1. A number is a downsample factor (not necessarily whole): the level
            then has ``round_px(side / factor)`` pixels a side and covers the whole of level 0. An image (uint8,
            (h, w, 3)) is written as it is, for pyramids with sizes of their own. See `pyramid_factors`.
        tile_px: Side of the square tiles, a multiple of 16.
        quality: JPEG quality, 1 to 100.
        subsampling: Chroma subsampling of the JPEG tiles; ``"444"`` keeps colours at full resolution.
        vendor: ``"generic-tiff"``, or ``"aperio"`` for an SVS with thumbnail and Aperio image description.

    Returns:
        The path written.

    Raises:
        UsageError: Wrong array, levels that do not shrink, or an option out of range.
    """
    target = Path(path)
    _check_image(image)
    _check_options(mpp=mpp, tile_px=tile_px, quality=quality, subsampling=subsampling, vendor=vendor)
    sizes = _level_sizes(image, levels)
    page: _Page = {
        "tile": (tile_px, tile_px),
        "compressionargs": {"level": quality},
        "subsampling": _CHROMA[subsampling],
    }
    # The tag "Software" is fixed and there is no date, so equal pixels give equal bytes.
    with (
        atomic_path(target) as part,
        tifffile.TiffWriter(part, bigtiff=image.nbytes > _BIGTIFF_BYTES) as tif,
    ):
        for index, (level, (width, height)) in enumerate(zip(levels, sizes, strict=True)):
            pixels = shrink(image, width, height) if isinstance(level, (int, float)) else level
            per_cm = 1e4 / (mpp * image.shape[1] / width)
            aperio = vendor == "aperio"
            tif.write(
                _tiles(pixels, tile_px),
                shape=(height, width, 3),
                dtype=np.uint8,
                photometric="rgb",
                compression="jpeg",
                # Aperio marks its levels by the description, others by the "reduced image" bit.
                subfiletype=int(index > 0 and not aperio),
                description=_description(image, (width, height), mpp, quality, tile_px) if aperio else None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=_SOFTWARE,
                **page,
            )
            if index == 0 and aperio:
                _write_thumbnail(tif, image, quality)
    return target


def _check_image(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape) < 1:
        raise UsageError(
            f"image is {image.dtype} of shape {image.shape}, a slide is uint8 RGB of shape (h, w, 3)",
            hint="convert it, for example image.convert('RGB') in Pillow",
        )


def _check_options(*, mpp: float, tile_px: int, quality: int, subsampling: str, vendor: str) -> None:
    if not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"mpp is {mpp}, it must be a positive number of µm per pixel", hint="try mpp=0.5")
    if tile_px < 16 or tile_px % 16:
        raise UsageError(f"tile_px is {tile_px}, TIFF tiles are multiples of 16", hint="try tile_px=256")
    if not 1 <= quality <= 100:
        raise UsageError(f"JPEG quality is {quality}, it must be 1 to 100", hint="try quality=90")
    for name, value, known in (("subsampling", subsampling, tuple(_CHROMA)), ("vendor", vendor, VENDORS)):
        if value not in known:
            raise UsageError(f"{name} is {value!r}", hint=f"use one of {', '.join(known)}")


def _level_sizes(image: Pixels, levels: Sequence[float | Pixels]) -> list[tuple[int, int]]:
    """(width, height) of every level, checked to begin with level 0 and to shrink."""
    h, w = image.shape[:2]
    sizes = []
    for level in levels:
        if isinstance(level, (int, float)):
            if not (math.isfinite(level) and level >= 1):
                raise UsageError(f"downsample factor {level} is below 1", hint="try levels=(1, 4, 16)")
            sizes.append((max(1, round_px(w / level)), max(1, round_px(h / level))))
        else:
            _check_image(level)
            sizes.append((level.shape[1], level.shape[0]))
    if not sizes or sizes[0] != (w, h):
        raise UsageError(f"levels begin with {levels[:1]}, not with level 0", hint="begin levels with 1")
    for larger, smaller in pairwise(sizes):
        if not (smaller[0] < larger[0] and smaller[1] < larger[1]):
            raise UsageError(
                f"level of {smaller[0]}x{smaller[1]} px does not shrink {larger[0]}x{larger[1]} px",
                hint="give growing downsample factors, or fewer of them on a small image",
            )
    return sizes


def _tiles(pixels: Pixels, tile_px: int) -> Iterator[Pixels]:
    """Tiles in row-major order; the overhang of the last ones repeats the edge, so JPEG does not ring there."""
    h, w = pixels.shape[:2]
    for y in range(0, h, tile_px):
        for x in range(0, w, tile_px):
            tile = pixels[y : y + tile_px, x : x + tile_px]
            below, right = tile_px - tile.shape[0], tile_px - tile.shape[1]
            if below or right:
                tile = np.pad(tile, ((0, below), (0, right), (0, 0)), mode="edge")
            yield np.ascontiguousarray(tile)


def _description(image: Pixels, size: tuple[int, int], mpp: float, quality: int, tile_px: int) -> str:
    """Image description of an Aperio page; OpenSlide knows the vendor by it and reads the fields after the bars."""
    h, w = image.shape[:2]
    reduced = "" if size == (w, h) else f" -> {size[0]}x{size[1]}"
    return (
        f"Aperio Image Library (histotl)\r\n{w}x{h} ({tile_px}x{tile_px}){reduced} JPEG/RGB Q={quality}"
        f"|AppMag = {nominal_magnification(mpp):.0f}|MPP = {mpp:.6g}"
    )


def _write_thumbnail(tif: tifffile.TiffWriter, image: Pixels, quality: int) -> None:
    """Second page of an SVS: one JPEG strip, which OpenSlide offers as the associated image "thumbnail"."""
    h, w = image.shape[:2]
    factor = max(1.0, max(h, w) / 1024)
    small = shrink(image, max(1, round_px(w / factor)), max(1, round_px(h / factor)))
    tif.write(
        small,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": quality},
        rowsperstrip=small.shape[0],
        description=f"Aperio Image Library (histotl)\r\n{w}x{h} -> {small.shape[1]}x{small.shape[0]} -",
        metadata=None,
        software=_SOFTWARE,
    )
