"""Colour functions as one GPU kernel each, in Triton: a pixel is read once, and written once.

What is written may be the network's input: the factor and the summand of each channel are applied on the way. The same
steps one torch operation at a time move a tile through the GPU's memory some forty times. Programs run over
pixels of interleaved RGB; the three bytes of a pixel come from the same cache line, so reading them one by one costs
nothing. Imported only where Triton is installed; see :mod:`histotl.image._device` for who calls what with what.
"""

from __future__ import annotations

import triton
import triton.language as tl

from histotl.image._lab import KNEE, KNEE_ROOT, LINEAR_KNEE
from histotl.image._od import IO

# Triton takes only such constants from around a function.
_IO, _KNEE, _KNEE_ROOT, _LINEAR_KNEE = (tl.constexpr(number) for number in (IO, KNEE, KNEE_ROOT, LINEAR_KNEE))


@triton.jit  # type: ignore[untyped-decorator]
def _place(pixels: int, block: tl.constexpr) -> tl.tensor:
    """Which pixels of its block a program has, and where the first byte of each is."""
    pixel = tl.program_id(1) * block + tl.arange(0, block)
    return pixel < pixels, (tl.program_id(0).to(tl.int64) * pixels + pixel) * 3


@triton.jit  # type: ignore[untyped-decorator]
def _put(
    out: tl.tensor,
    affine: tl.tensor,
    channel: tl.constexpr,
    at: tl.tensor,
    inside: tl.tensor,
    level: tl.tensor,
    rounded: tl.constexpr,
) -> None:
    """Write levels of one channel: clipped, or rounded halves up and clipped, times its factor plus its summand."""
    if rounded:
        level = tl.floor(level + 0.5)
    level = tl.minimum(tl.maximum(level, 0.0), 255.0)
    value = level * tl.load(affine + channel) + tl.load(affine + 3 + channel)
    tl.store(out + at + channel, value.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _sum(
    numbers: tl.tensor, row: tl.constexpr, width: tl.constexpr, x: tl.tensor, y: tl.tensor, z: tl.tensor
) -> tl.tensor:
    """A row of a matrix times three values."""
    first = numbers + row * width
    return tl.load(first) * x + tl.load(first + 1) * y + tl.load(first + 2) * z


@triton.jit  # type: ignore[untyped-decorator]
def _log_light(level: tl.tensor) -> tl.tensor:
    """Optical density taken negative."""
    return tl.log((level.to(tl.float32) + 1.0) / _IO)


@triton.jit  # type: ignore[untyped-decorator]
def restain(
    tiles: tl.tensor,
    out: tl.tensor,
    affine: tl.tensor,
    weights: tl.tensor,
    per_tile: int,
    pixels: int,
    rounded: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """A matrix on optical densities.

    Args:
        tiles: uint8 RGB (b, pixels, 3).
        out: Of the same shape: uint8, or floats.
        affine: Factors and summands of the channels, float32 (2, 3).
        weights: float32 (1, 3, 4) or (b, 3, 4), see :func:`histotl.image._od.log_weights`.
        per_tile: Numbers from the weights of one tile to those of the next; 0 where all have the same.
        pixels: Of a tile.
        rounded: Whether levels are rounded.
        block: Pixels that a program works on.
    """
    inside, at = _place(pixels, block)
    red = _log_light(tl.load(tiles + at, mask=inside, other=0))
    green = _log_light(tl.load(tiles + at + 1, mask=inside, other=0))
    blue = _log_light(tl.load(tiles + at + 2, mask=inside, other=0))
    own = weights + tl.program_id(0) * per_tile
    for channel in tl.static_range(3):
        total = _sum(own, channel, 4, red, green, blue) + tl.load(own + channel * 4 + 3)
        _put(out, affine, channel, at, inside, tl.exp(tl.minimum(total, 6.0)) - 1.0, rounded)  # exp(6) is beyond white


@triton.jit  # type: ignore[untyped-decorator]
def relight(
    tiles: tl.tensor,
    out: tl.tensor,
    affine: tl.tensor,
    light: tl.tensor,
    before: tl.tensor,
    change: tl.tensor,
    after: tl.tensor,
    pixels: int,
    rounded: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """A gain and a shift of L*, a* and b*, which are one matrix on the cube roots of X, Y and Z.

    Args:
        tiles: uint8 RGB (b, pixels, 3).
        out: Of the same shape: uint8, or floats.
        affine: Factors and summands of the channels, float32 (2, 3).
        light: Linear light of the levels, float32 (256,).
        before: X, Y and Z over those of white from linear light, float32 (3, 3).
        change: On their roots, float32 (3, 4).
        after: Linear light from X, Y and Z, float32 (3, 3).
        pixels: Of a tile.
        rounded: Whether levels are rounded.
        block: Pixels that a program works on.
    """
    inside, at = _place(pixels, block)
    red = tl.load(light + tl.load(tiles + at, mask=inside, other=0).to(tl.int32))
    green = tl.load(light + tl.load(tiles + at + 1, mask=inside, other=0).to(tl.int32))
    blue = tl.load(light + tl.load(tiles + at + 2, mask=inside, other=0).to(tl.int32))
    fx = _root(_sum(before, 0, 3, red, green, blue))
    fy = _root(_sum(before, 1, 3, red, green, blue))
    fz = _root(_sum(before, 2, 3, red, green, blue))
    x = _cube(_sum(change, 0, 4, fx, fy, fz) + tl.load(change + 3))
    y = _cube(_sum(change, 1, 4, fx, fy, fz) + tl.load(change + 7))
    z = _cube(_sum(change, 2, 4, fx, fy, fz) + tl.load(change + 11))
    for channel in tl.static_range(3):
        linear = _sum(after, channel, 3, x, y, z)
        curved = 1.055 * tl.exp(tl.log(tl.maximum(linear, _LINEAR_KNEE)) * (1.0 / 2.4)) - 0.055
        level = 255.0 * tl.where(linear > _LINEAR_KNEE, curved, linear * 12.92)
        _put(out, affine, channel, at, inside, level, rounded)


@triton.jit  # type: ignore[untyped-decorator]
def _root(value: tl.tensor) -> tl.tensor:
    root = tl.exp(tl.log(tl.maximum(value, _KNEE)) * (1.0 / 3.0))
    return tl.where(value > _KNEE, root, value * 7.787 + 16.0 / 116.0)


@triton.jit  # type: ignore[untyped-decorator]
def _cube(root: tl.tensor) -> tl.tensor:
    return tl.where(root > _KNEE_ROOT, root * root * root, (root - 16.0 / 116.0) / 7.787)


@triton.jit  # type: ignore[untyped-decorator]
def retable(
    tiles: tl.tensor,
    out: tl.tensor,
    affine: tl.tensor,
    table: tl.tensor,
    pixels: int,
    rounded: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """A table for each channel.

    Args:
        tiles: uint8 RGB (b, pixels, 3).
        out: Of the same shape: uint8, or floats.
        affine: Factors and summands of the channels, float32 (2, 3).
        table: Levels, float32 (256, 3).
        pixels: Of a tile.
        rounded: Whether levels are rounded.
        block: Pixels that a program works on.
    """
    inside, at = _place(pixels, block)
    for channel in tl.static_range(3):
        level = tl.load(tiles + at + channel, mask=inside, other=0).to(tl.int32)
        _put(out, affine, channel, at, inside, tl.load(table + level * 3 + channel), rounded)
