"""Colour functions on a GPU: the kernels of :mod:`histotl.image._kernels`, where Triton can make them.

Triton comes with torch for GPUs, and builds what starts its kernels with the system's C compiler. Where one of the two
is missing, the same functions run one torch operation at a time, which is said once: they take some per cent of a fast
network's time.
"""

from __future__ import annotations

import logging
import math
import subprocess
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from histotl.image._lab import from_xyz, linear_levels, on_roots, to_xyz
from histotl.image._od import IO, log_weights
from histotl.image._planes import CLEAR, Triple

log = logging.getLogger(__name__)

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a kernel writes levels, which it clips to 0 to 255.

    Args:
        dtype: uint8, or a floating one.
        rounded: Whether they are rounded, halves up.
        scale: Factors for R, G and B, after that.
        shift: Added after them.
    """

    dtype: torch.dtype
    rounded: bool = True
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)


def has_kernels(tiles: torch.Tensor) -> bool:
    """Whether tiles are where kernels can be had for these functions; where not on a GPU, it is said once why."""
    return tiles.device.type == "cuda" and _has_kernels(tiles.device)


def restained(
    tiles: torch.Tensor, matrix: tuple[tuple[float, ...], ...], added: Triple, *, written: Written
) -> torch.Tensor:
    """Apply one matrix to the optical densities of all tiles.

    Args:
        tiles: uint8 RGB (b, h, w, 3).
        matrix: Row r gives the new density of channel r.
        added: Densities that are added afterwards.
        written: How.
    """
    return _restained(tiles, _weights_on(tiles.device, matrix, added), written)


def restained_each(tiles: torch.Tensor, matrix: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Apply a matrix to the optical densities of each tile.

    Args:
        tiles: uint8 RGB (b, h, w, 3).
        matrix: (b, 3, 3) on the same device.
        added: Densities (b, 3) that are added afterwards.
    """
    weights = torch.cat([matrix, (math.log(IO) - added)[:, :, None]], dim=2).to(torch.float32)
    return _restained(tiles, weights, Written(dtype=torch.uint8))


def relit(
    tiles: torch.Tensor,
    gain: tuple[float, ...],
    shift: tuple[float, ...],
    *,
    white: Triple = CLEAR,
    glass: Triple = CLEAR,
    written: Written,
) -> torch.Tensor:
    """Apply a gain and a shift to each of L*, a* and b*.

    Args:
        tiles: uint8 RGB (b, h, w, 3).
        gain: Factors of L*, a* and b*.
        shift: Added after them.
        white: Levels of R, G and B that have L* = 100 and no colour before.
        glass: The same after.
        written: How.
    """
    numbers = _lab_numbers_on(tiles.device, gain, shift, white, glass)
    return _launch(_kernels().relight, tiles, written, *numbers)


def retabled(tiles: torch.Tensor, tables: tuple[tuple[float, ...], ...], *, written: Written) -> torch.Tensor:
    """Replace the levels of each channel by their entries in a table.

    Args:
        tiles: uint8 RGB (b, h, w, 3).
        tables: Of 256 levels before rounding, for R, G and B.
        written: How.
    """
    return _launch(_kernels().retable, tiles, written, _tables_on(tiles.device, tables))


# What all batches of a slide share goes to the device once.
@lru_cache(maxsize=64)
def _weights_on(device: torch.device, matrix: tuple[tuple[float, ...], ...], added: Triple) -> torch.Tensor:
    return _on(device, log_weights(np.array(matrix), np.array([added])))


@lru_cache(maxsize=64)
def _lab_numbers_on(
    device: torch.device, gain: tuple[float, ...], shift: tuple[float, ...], white: Triple, glass: Triple
) -> tuple[torch.Tensor, ...]:
    numbers = (linear_levels(), to_xyz(white), on_roots(gain, shift), from_xyz(glass))
    return tuple(_on(device, part) for part in numbers)


@lru_cache(maxsize=64)
def _tables_on(device: torch.device, tables: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    return _on(device, np.ascontiguousarray(np.array(tables).T))


@lru_cache(maxsize=64)
def _affine_on(device: torch.device, scale: tuple[float, ...], shift: tuple[float, ...]) -> torch.Tensor:
    return _on(device, [scale, shift])


def _on(device: torch.device, numbers: npt.ArrayLike) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return torch.from_numpy(np.asarray(numbers, np.float32)).to(device)


def _restained(tiles: torch.Tensor, weights: torch.Tensor, written: Written) -> torch.Tensor:
    return _launch(_kernels().restain, tiles, written, weights, 0 if len(weights) == 1 else 12)


def _launch(kernel: Any, tiles: torch.Tensor, written: Written, *numbers: torch.Tensor | int) -> torch.Tensor:
    out = torch.empty_like(tiles, dtype=written.dtype, memory_format=torch.contiguous_format)
    b, h, w, _ = tiles.shape
    if tiles.numel():
        grid = (b, -(-h * w // _BLOCK))
        affine = _affine_on(tiles.device, written.scale, written.shift)
        settings = {"rounded": written.rounded, "block": _BLOCK, "enable_fp_fusion": True}
        with torch.cuda.device_of(tiles):  # type: ignore[no-untyped-call]  # Triton starts kernels on the current one
            kernel[grid](tiles.contiguous(), out, affine, *numbers, h * w, **settings)
    return out


@cache
def _kernels() -> ModuleType:
    from histotl.image import _kernels

    return _kernels


@cache
def _has_kernels(device: torch.device) -> bool:
    why = why_no_kernels(device)
    if why:
        log.warning("stain normalisation takes several GPU kernels instead of one: %s", why)
    return not why


def why_no_kernels(device: torch.device) -> str:
    """Try one pixel on a GPU; what is wrong and what it takes, empty where nothing is."""
    try:
        from triton.errors import TritonError
    except ImportError as error:
        return f"{error}; it comes with torch for GPUs on Linux"
    try:
        pixel = torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device=device)
        restained(pixel, ((0.0,) * 3,) * 3, (0.0, 0.0, 0.0), written=Written(dtype=torch.uint8))
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        first = (str(error) or repr(error)).splitlines()[0]
        return f"{first}; it takes a C compiler and Python's headers (gcc, python3-dev) and a TRITON_CACHE_DIR to write"
    return ""
