"""Tiles become the network's input: one resize if needed, one affine, on whatever device they are on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from histotl.core.values import BackboneCard

_PIECE = 4 * 224 * 224 * 3  # levels; as floats about what a core's own cache holds


class Scratch(threading.local):
    """Memory for prepared batches that is used again and again, one piece a thread.

    A batch of float tiles is tens of megabytes, which the system hands out page by page at every call, and on a CPU
    that takes longer than filling them. What :func:`prepare` wrote here is overwritten by its next call in the same
    thread.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Room for ``count`` numbers, contents undefined."""
        if self._memory.dtype != dtype or len(self._memory) < count:
            # A tensor made in inference mode could not be written to outside it.
            with torch.inference_mode(mode=False):
                self._memory = torch.empty(count, dtype=dtype)
        return self._memory[:count]

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a view of this memory, so that the next batch would change it."""
        return tensor.untyped_storage().data_ptr() == self._memory.untyped_storage().data_ptr()


def prepare(
    tiles: torch.Tensor, card: BackboneCard, *, scratch: Scratch | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Resize and normalise a batch as the card says.

    The resize is antialiased, to whole levels as image libraries do it, and is skipped when the tiles have the right
    size; tiles that are not square are squeezed. Tiles are used whole: a model's own centre crop would throw tissue
    away.

    Args:
        tiles: uint8 RGB (b, h, w, 3).
        card: Gives ``input_px``, ``interpolation``, ``mean`` and ``std``.
        scratch: Memory for the result on a CPU; new memory without it.
        dtype: Number format of the result; the affine itself is computed in float32.

    Returns:
        (b, 3, input_px, input_px) in channels-last memory order.
    """
    fitted = fit(tiles, card)
    b, side = len(fitted), card.input_px
    scale, shift = row_affine(card.mean, card.std, side, tiles.device)
    # Whole rows of interleaved RGB keep the inner loop contiguous.
    levels = fitted.reshape(b, side, side * 3)
    if tiles.device.type == "cpu":
        memory = scratch.take(levels.numel(), dtype) if scratch else torch.empty(levels.numel(), dtype=dtype)
        rows = _affine_by_pieces(levels, scale, shift, memory.view(levels.shape))
    else:
        # One kernel: it reads bytes, computes in float32 and writes the format that is wanted.
        rows = torch.addcmul(shift, levels, scale, out=torch.empty(levels.shape, dtype=dtype, device=tiles.device))
    return rows.view(b, side, side, 3).permute(0, 3, 1, 2)


def fit(tiles: torch.Tensor, card: BackboneCard) -> torch.Tensor:
    """Resize uint8 (b, h, w, 3) to the card's input size, uint8; tiles of that size are given back as they are."""
    if tiles.shape[1:3] == (card.input_px, card.input_px):
        return tiles
    return _resize(tiles.permute(0, 3, 1, 2), card.input_px, card.interpolation).permute(0, 2, 3, 1)


@lru_cache(maxsize=32)
def row_affine(
    mean: tuple[float, ...], std: tuple[float, ...], side: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of every value in a row of interleaved RGB levels, float32 (side * 3)."""
    with torch.inference_mode(mode=False):
        both = (torch.tensor(v, dtype=torch.float32) for v in channel_affine(mean, std))
        return tuple(v.repeat(side).to(device) for v in both)  # type: ignore[return-value]


def channel_affine(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Factor and summand of the levels of each channel that give ``(level / 255 - mean) / std``."""
    pairs = list(zip(mean, std, strict=True))
    return tuple(1 / (255 * s) for _, s in pairs), tuple(-m / s for m, s in pairs)


def _affine_by_pieces(
    levels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Write ``shift + scale * levels`` into ``out``; a few tiles at a time, so that their floats are still in cache."""
    step = max(1, _PIECE // max(1, levels.shape[1] * levels.shape[2]))
    for source, target in zip(torch.split(levels, step), torch.split(out, step), strict=True):
        floats = target.copy_(source) if target.dtype == torch.float32 else source.to(torch.float32)
        torch.addcmul(shift, floats, scale, out=target)
    return out


def _resize(images: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """Resize uint8 (b, 3, h, w) to a square, uint8."""
    if images.device.type == "cpu":
        # The 8-bit kernel is several times faster than the float one, and differs from it by rounding only.
        return F.interpolate(images, size=(side, side), mode=mode, antialias=True, align_corners=False)
    exact = F.interpolate(images.to(torch.float32), size=(side, side), mode=mode, antialias=True, align_corners=False)
    return exact.round_().clamp_(0, 255).to(torch.uint8)
