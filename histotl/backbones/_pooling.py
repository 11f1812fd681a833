"""A network's output becomes one vector a tile, by a rule that has a name."""

from __future__ import annotations

from typing import Literal

import torch

from histotl.core.errors import SpecError

Pooling = Literal["avg", "cls", "cls+mean", "none"]


def pool(output: torch.Tensor, how: str, *, prefix: int = 1, channels_last: bool = False) -> torch.Tensor:
    """Pool a feature map or tokens in float32.

    Args:
        output: (b, d), (b, tokens, d) with the class token first, or a map (b, d, h, w).
        how: ``avg``: mean over the map, or over all tokens that stand for patches; ``cls``: the class token;
            ``cls+mean``: both, one after the other; ``none``: already a vector.
        prefix: Tokens (class, registers) before the patch tokens.
        channels_last: A map is (b, h, w, d).

    Returns:
        float32 (b, d), or (b, 2 d) for ``cls+mean``.

    Raises:
        SpecError: The rule does not fit the output's shape.
    """
    shape = tuple(output.shape)
    if output.ndim == 4 and how == "avg":
        return output.to(torch.float32).mean((1, 2) if channels_last else (2, 3))
    if output.ndim == 3 and how in ("avg", "cls", "cls+mean"):
        tokens = output.to(torch.float32)
        if how != "avg" and prefix < 1:
            raise SpecError(f"pooling={how!r}, but the network has no class token", hint="use pooling='avg'")
        parts = [tokens[:, 0]] if how != "avg" else []
        return torch.cat([*parts, tokens[:, prefix:].mean(1)] if how != "cls" else parts, dim=1)
    if output.ndim == 2 and how == "none":
        return output.to(torch.float32)
    fitting = {2: "'none'", 3: "'avg', 'cls' or 'cls+mean'", 4: "'avg'"}.get(output.ndim)
    cure = f"use pooling={fitting}" if fitting else "the network must give (b, d), (b, tokens, d) or (b, d, h, w)"
    raise SpecError(f"pooling={how!r} does not fit a network output of shape {shape}", hint=cure)
