"""Tiles become the network's input: one resize if needed, one affine, on whatever device they are on."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from histotl.core.values import BackboneCard


def prepare(tiles: torch.Tensor, card: BackboneCard) -> torch.Tensor:
    """Resize and normalise a batch as the card says.

    The resize is antialiased, to whole levels as image libraries do it, and is skipped when the tiles have the right
    size; tiles that are not square are squeezed. Tiles are used whole: a model's own centre crop would throw tissue
    away.

    Args:
        tiles: uint8 RGB (b, h, w, 3).
        card: Gives ``input_px``, ``interpolation``, ``mean`` and ``std``.

    Returns:
        float32 (b, 3, input_px, input_px) in channels-last memory order.
    """
    b, h, w, _ = tiles.shape
    side = card.input_px
    if (h, w) != (side, side):
        tiles = _resize(tiles.permute(0, 3, 1, 2), side, card.interpolation).permute(0, 2, 3, 1)
    scale, shift = _row_affine(card.mean, card.std, side, tiles.device)
    # Whole rows of interleaved RGB keep the inner loop contiguous; in place, this is hardly dearer than the conversion.
    rows = tiles.reshape(b, side, side * 3).to(torch.float32).mul_(scale).add_(shift)
    return rows.view(b, side, side, 3).permute(0, 3, 1, 2)


def _resize(images: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """Resize uint8 (b, 3, h, w) to a square, uint8."""
    if images.device.type == "cpu":
        # The 8-bit kernel is several times faster than the float one, and differs from it by rounding only.
        return F.interpolate(images, size=(side, side), mode=mode, antialias=True, align_corners=False)
    exact = F.interpolate(images.to(torch.float32), size=(side, side), mode=mode, antialias=True, align_corners=False)
    return exact.round_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _row_affine(
    mean: tuple[float, ...], std: tuple[float, ...], side: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of every value in a row of interleaved RGB levels, float32 (side * 3)."""
    with torch.inference_mode(mode=False):
        m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        scale, shift = 1 / (255 * s), -m / s
        return tuple(v.to(torch.float32).repeat(side).to(device) for v in (scale, shift))  # type: ignore[return-value]
