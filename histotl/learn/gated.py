"""Layers of attention pooling: embedded tiles, and gated scores (Ilse, Tomczak, Welling 2018, eq. 9).

Both save little for the backward pass and work in place, because what such a layer costs beside its matrix products is
memory: at 1024 -> 512 -> 2 x 256 the plain modules wait a third of a training step for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from histotl.core.errors import UsageError

ROWS = 2048
"""Rows whose gradients are made at a time, so that they stay in the cache between operations."""


def check_layers(name: str, *, dropout: float = 0.0, **sizes: int) -> None:
    """Refuse sizes below 1 and a dropout that is no share.

    Args:
        name: The aggregator, for the message.
        dropout: While training.
        **sizes: Widths and counts.

    Raises:
        UsageError: One is out of range.
    """
    if min(sizes.values()) < 1 or not 0 <= dropout < 1:
        shown = ", ".join(f"{key}={value}" for key, value in {**sizes, "dropout": dropout}.items())
        raise UsageError(f"{name}: {shown}", hint="give sizes of 1 or more and a dropout from 0 to below 1")


class Embedding(nn.Module):
    """dropout(relu(E x + e)), the vectors that attention weighs.

    Args:
        in_dim: Of the tiles.
        width: Of the result.
        dropout: While training.
    """

    def __init__(self, in_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, width)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_dim) into (N, width)."""
        return _ReluDropout.apply(self.linear(x), self.dropout if self.training else 0.0)  # type: ignore[no-any-return]


class GatedScores(nn.Module):
    """w_r . (tanh(V h) * sigmoid(U h)) for r = 1 … rows; rows share V and U.

    Args:
        width: Of the vectors.
        attention: Rows of V and of U.
        rows: Scores of each vector.
        gated: False leaves the sigmoid out.
    """

    def __init__(self, width: int, attention: int, rows: int = 1, *, gated: bool = True) -> None:
        super().__init__()
        # V and U in one matrix: one product over the packed tiles.
        self.gates = nn.Linear(width, (1 + gated) * attention)
        self.score = nn.Linear(attention, rows, bias=False)
        self.gated = gated

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(N, width) into (N, rows)."""
        gates = self.gates(h)
        inner = _Gate.apply(gates) if self.gated else torch.tanh(gates)
        return self.score(inner)  # type: ignore[no-any-return]


class _ReluDropout(torch.autograd.Function):
    """In place: what was dropped is 0 as what was negative is, so the result alone tells the gradient."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, dropout: float) -> torch.Tensor:
        ctx.mark_dirty(z)
        z.relu_()
        if dropout:
            _drop(z, dropout)
        ctx.save_for_backward(z)
        ctx.scale = 1 / (1 - dropout)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (h,) = ctx.saved_tensors
        found = torch.ops.aten.threshold_backward(grad, h, 0)
        return (found.mul_(ctx.scale) if ctx.scale != 1 else found), None


def _drop(h: torch.Tensor, share: float) -> None:
    """Set a share of the cells to 0 at random and scale the others; on a CPU one random number does for four cells."""
    if h.device.type != "cpu":
        h.mul_(torch.empty_like(h).bernoulli_(1 - share).div_(1 - share))
        return
    limit, keep = round(share * 65536) - 32768, 1 / (1 - share)
    for block in torch.split(h, ROWS):
        bits = torch.empty(-(-block.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        drawn = bits.view(torch.int16)[: block.numel()].view(block.shape)
        block.masked_fill_(drawn < limit, 0).mul_(keep)


class _Gate(torch.autograd.Function):
    """tanh(left half) * sigmoid(right half), the halves changed in place."""

    @staticmethod
    def forward(ctx: Any, gates: torch.Tensor) -> torch.Tensor:
        found = gates.new_empty(len(gates), gates.shape[1] // 2)
        for block, out in zip(torch.split(gates.detach(), ROWS), torch.split(found, ROWS), strict=True):
            v, u = block.chunk(2, dim=1)
            torch.mul(v.tanh_(), u.sigmoid_(), out=out)
        ctx.save_for_backward(gates, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        gates, found = ctx.saved_tensors
        result = torch.empty_like(gates)
        parts = (torch.split(each, ROWS) for each in (gates, found, grad, result))
        for block, product, slope, out in zip(*parts, strict=True):
            (v, u), (of_v, of_u) = block.chunk(2, dim=1), out.chunk(2, dim=1)
            # d/dv = u (1 - v^2) = u - p v and d/du = v u (1 - u) = p - p u, with p = v u.
            torch.addcmul(u, product, v, value=-1, out=of_v).mul_(slope)
            torch.addcmul(product, product, u, value=-1, out=of_u).mul_(slope)
        return result
