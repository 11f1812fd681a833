"""Weights held in the half format that autocast would round them to at every call."""

from __future__ import annotations

import logging

import torch
from torch import nn

from histotl.backbones._network import NetworkEmbedder
from histotl.backbones.base import Embedder

log = logging.getLogger(__name__)

# Exactly these and no subclasses: a layer that standardises its weights first needs them in float32.
_ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRIAL = 2


def hold_half(embedder: Embedder, dtype: torch.dtype) -> Embedder:
    """Convert the weights of linear and convolution layers to the format that autocast computes them in.

    Autocast keeps rounded weights only of parameters that have gradients, so in inference it rounds all of them for
    every batch. What it keeps in float32 (normalisation, softmax, the residual stream) stays so: features under
    autocast are the same numbers as before. This is tried on two tiles; a network that computes a part of itself
    outside autocast would fail or change, and is left as it was.

    Args:
        embedder: Is changed in place. Embedders that are no networks are left alone.
        dtype: bfloat16 or float16; the one that the caller's autocast uses.

    Returns:
        The embedder; call it under autocast with ``dtype``.
    """
    if not isinstance(embedder, NetworkEmbedder):
        return embedder
    wanted = _trial(embedder, dtype)
    held: list[tuple[nn.Parameter, torch.Tensor]] = []
    for layer in embedder.module.modules():
        if type(layer) in _ROUNDED:
            for weight in layer.parameters(recurse=False):
                held.append((weight, weight.data))
                weight.data = weight.data.to(dtype)
    try:
        same = torch.allclose(_trial(embedder, dtype), wanted, rtol=1e-3, atol=1e-6)
        reason = "" if same else "its features would change"
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
    if reason:
        for weight, data in held:
            weight.data = data
        log.info("%s keeps its weights in float32: %s", embedder.card.name, reason)
    return embedder


def _trial(embedder: NetworkEmbedder, dtype: torch.dtype) -> torch.Tensor:
    side = embedder.card.input_px
    device = next((p.device for p in embedder.module.parameters()), torch.device("cpu"))
    levels = torch.arange(_TRIAL * side * side * 3, device=device) * 37 % 251
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype):
        return embedder(levels.to(torch.uint8).view(_TRIAL, side, side, 3))
