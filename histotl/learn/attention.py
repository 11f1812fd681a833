"""Multi-head attention over packed bags: each tile looks at the tiles of its own bag only (Vaswani et al. 2017).

The projections are products over the whole pack; between them every bag goes through torch's fused attention, which
is exact and never holds the n x n matrix: 50,000 tiles need no more memory than their vectors do. So no landmarks are
needed (Nyström), and none can depend on the order of the tiles.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from histotl.core.errors import UsageError
from histotl.learn.segments import lengths, owners, segment_softmax, segment_weighted_sum


def check_heads(name: str, hidden: int, heads: int) -> None:
    """Refuse a width that cannot be shared among the heads.

    Raises:
        UsageError: It cannot.
    """
    if hidden % heads:
        raise UsageError(f"{name}: hidden={hidden} is no multiple of heads={heads}", hint="such as 512 and 8")


class SelfAttention(nn.Module):
    """Every tile looks at all tiles of its bag.

    Args:
        width: Of the vectors.
        heads: That share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, h: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(N, width) into (N, width)."""
        # (N, 3 * width) into three of (heads, N, width / heads).
        packed = self.inner(h).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        parts = packed.split(lengths(offsets), dim=2)
        seen = [scaled_dot_product_attention(*(each[None] for each in part))[0] for part in parts]
        return self.outer(torch.cat(seen, dim=1).transpose(0, 1).flatten(1))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """A few tokens of each bag look at its tiles.

    Args:
        width: Of tokens and tiles.
        heads: That share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.inner, self.outer = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.heads = heads

    def forward(
        self, tokens: torch.Tensor, h: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, t, width) and tiles (N, width) into new tokens, and each tile's share (N, t) of a token."""
        key, value = self.inner(h).chunk(2, dim=1)
        key, owner = key.unflatten(1, (self.heads, -1)), owners(offsets, h.device)
        query = self.query(tokens).unflatten(2, (self.heads, -1)) * key.shape[-1] ** -0.5
        values, seen, shares = value.unflatten(1, (self.heads, -1)), [], []
        for token in query.unbind(dim=1):
            share = segment_softmax(torch.linalg.vecdot(key, token[owner]), offsets)
            heads = zip(values.unbind(dim=1), share.unbind(dim=1), strict=True)
            seen.append(torch.cat([segment_weighted_sum(v, a, offsets) for v, a in heads], dim=1))
            shares.append(share.mean(dim=1))
        return self.outer(torch.stack(seen, dim=1)), torch.stack(shares, dim=1)


class FeedForward(nn.Module):
    """Norm, two layers, and back onto the vectors.

    Args:
        width: Of the vectors; the inner layer is twice as wide.
        dropout: While training.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        inner = 2 * width
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width)
        )

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(…, width) into the same shape."""
        return h + self.layers(h)  # type: ignore[no-any-return]


def with_token(
    h: torch.Tensor, offsets: torch.Tensor, token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put a class token before the tiles of every bag.

    Returns:
        (N + B, d); its offsets; and the rows (B,) of the tokens.
    """
    count = len(offsets) - 1
    places = (offsets[:-1] + torch.arange(count, device=offsets.device)).to(h.device)
    tiles = torch.arange(len(h), device=h.device) + owners(offsets, h.device) + 1
    order = torch.empty(len(h) + count, dtype=torch.int64, device=h.device)
    order[tiles] = torch.arange(count, len(order), device=h.device)
    order[places] = torch.arange(count, device=h.device)
    joined = torch.cat([token.expand(count, -1), h])[order]
    return joined, offsets + torch.arange(count + 1, device=offsets.device), places
