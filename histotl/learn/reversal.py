"""Gradient reversal: a head that learns as always, and features that unlearn what it needs (Ganin et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch


class _Reversed(torch.autograd.Function):
    """The same values; their gradient comes back with the other sign."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Values as they are."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient times minus the strength; none for the strength."""
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: torch.Tensor, strength: float) -> torch.Tensor:
    """``x``, whose gradient is multiplied by ``-strength`` on the way back."""
    found: torch.Tensor = _Reversed.apply(x, strength)
    return found
