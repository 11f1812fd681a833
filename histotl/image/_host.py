"""Colour functions on the CPU through OpenCV, a tile at a time.

The floats of one tile stay in a core's own cache, and OpenCV's loops use its vector units, which torch's exponential
and tables do not: a stain matrix takes 0.10 ms a tile of 224 px where the same steps in torch take 0.69. Each tile is
worked on alone, so a batch may be cut anywhere.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch

from histotl.image._lab import KNEE, KNEE_ROOT, LINEAR_KNEE, from_xyz, linear_levels, on_roots, to_xyz
from histotl.image._od import Array, log_weights, od_table
from histotl.image._planes import CLEAR, Triple, is_exact

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_LEVEL_KNEE = 24
"""The lowest level whose linear light lies above :data:`KNEE`: colours without a lower one have no straight part."""

_mine = threading.local()

Kind = TypeVar("Kind", bound=np.generic)


def is_host(tiles: torch.Tensor) -> bool:
    """Whether tiles are where these functions work."""
    return tiles.device.type == "cpu"


def restained(
    tiles: torch.Tensor, matrix: Array, added: Array | None = None, *, dtype: torch.dtype = torch.uint8
) -> torch.Tensor:
    """Apply a matrix to optical densities.

    Args:
        tiles: uint8 RGB (b, h, w, 3) on the CPU.
        matrix: (3, 3): row r gives the new density of channel r; or one for each tile (b, 3, 3).
        added: Densities (b, 3) that are added afterwards; None for none.
        dtype: Of the result, see :func:`histotl.image._planes.map_planes`.
    """
    weights = log_weights(matrix, np.zeros((1, 3)) if added is None else added)
    table, each = _minus_od(), iter(np.broadcast_to(weights, (len(tiles), 3, 4)))

    def restain(tile: Pixels, out: Levels) -> None:
        a, b = _scratch(tile.shape)
        cv2.LUT(tile, table, a)
        cv2.transform(a, next(each), b)
        flat_a, flat_b = _flat(a), _flat(b)
        np.clip(flat_b, 0.0, 6.0, out=flat_b)  # up to exp(6) = 403: level 255 and more
        cv2.exp(flat_b, flat_a)
        _write(flat_a, out, -1.0)

    return _map(tiles, restain, dtype)


def relit(
    tiles: torch.Tensor,
    gain: tuple[float, ...],
    shift: tuple[float, ...],
    *,
    white: Triple = CLEAR,
    glass: Triple = CLEAR,
    dtype: torch.dtype = torch.uint8,
) -> torch.Tensor:
    """Apply a gain and a shift to each of L*, a* and b*.

    Args:
        tiles: uint8 RGB (b, h, w, 3) on the CPU.
        gain: Factors of L*, a* and b*.
        shift: Added after them.
        white: Levels of R, G and B that have L* = 100 and no colour before.
        glass: The same after.
        dtype: Of the result, see :func:`histotl.image._planes.map_planes`.
    """
    change = np.array(on_roots(gain, shift), np.float32)
    before, after = np.array(to_xyz(white), np.float32), np.array(from_xyz(glass), np.float32)
    table = linear_levels().astype(np.float32).reshape(256, 1)
    log_gain, step = math.log(1.055 * 255), 0.055 * 255

    def relight(tile: Pixels, out: Levels) -> None:
        a, b = _scratch(tile.shape)
        flat_a, flat_b = _flat(a), _flat(b)
        cv2.LUT(tile, table, a)
        cv2.transform(a, before, b)
        low = flat_b <= KNEE if tile.min() < _LEVEL_KNEE else None
        _power(flat_b, flat_a, 1 / 3)
        if low is not None:
            flat_a[low] = flat_b[low] * 7.787 + 16 / 116
        cv2.transform(a, change, b)
        np.multiply(flat_b, flat_b, out=flat_a)
        np.multiply(flat_a, flat_b, out=flat_a)
        low = flat_b <= KNEE_ROOT
        flat_a[low] = (flat_b[low] - 16 / 116) / 7.787
        cv2.transform(a, after, b)
        low = flat_b <= LINEAR_KNEE
        _power(flat_b, flat_a, 1 / 2.4, log_gain)
        np.subtract(flat_a, step, out=flat_a)
        flat_a[low] = flat_b[low] * (12.92 * 255)
        np.clip(flat_a, 0.0, 255.0, out=flat_a)
        _write(flat_a, out)

    return _map(tiles, relight, dtype)


def retabled(tiles: torch.Tensor, tables: Levels, *, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Replace the levels of each channel by their entries in a table.

    Args:
        tiles: uint8 RGB (b, h, w, 3) on the CPU.
        tables: (256, 3), uint8 for that dtype and else float32.
        dtype: Of the result, see :func:`histotl.image._planes.map_planes`.
    """
    table = tables.reshape(256, 1, 3)
    return _map(tiles, lambda tile, out: cv2.LUT(tile, table, out), dtype)


def _map(tiles: torch.Tensor, function: Callable[[Pixels, Levels], object], dtype: torch.dtype) -> torch.Tensor:
    own = torch.float32 if is_exact(dtype) else torch.uint8
    out = torch.empty_like(tiles, dtype=own, memory_format=torch.contiguous_format)
    if tiles.numel():
        for tile, into in zip(tiles.contiguous().numpy(), out.numpy(), strict=True):
            function(tile, into)
    return out.to(dtype)


def _write(levels: Floats, out: Levels, added: float = 0.0) -> None:
    """Write levels of one channel, which are not negative when the number was added: rounded, or clipped at 255."""
    if out.dtype == np.uint8:
        cv2.convertScaleAbs(levels, _flat(out), 1.0, added)
    else:
        np.add(levels, added, out=levels)
        np.clip(levels, 0.0, 255.0, out=_flat(out))


def _power(source: Floats, out: Floats, exponent: float, log_gain: float = 0.0) -> None:
    """``exp(log_gain) * source ** exponent`` of positive numbers; the others become some tiny one."""
    np.maximum(source, 1e-12, out=out)
    cv2.log(out, out)
    np.multiply(out, exponent, out=out)
    if log_gain:
        np.add(out, log_gain, out=out)
    cv2.exp(out, out)


def _flat(pixels: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """The same memory with one channel: OpenCV takes a number for all channels of such an array only."""
    return pixels.reshape(pixels.shape[0], -1)


def _scratch(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Two arrays of this thread, used again for every tile of a size."""
    kept: tuple[Floats, Floats] | None = getattr(_mine, "kept", None)
    if kept is None or kept[0].shape != shape:
        kept = _mine.kept = (np.empty(shape, np.float32), np.empty(shape, np.float32))
    return kept


@cache
def _minus_od() -> Floats:
    table: Floats = -od_table().astype(np.float32).reshape(256, 1)
    return table
