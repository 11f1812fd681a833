"""Tasks look at each other's features (after the idea of CTAN: Kim, Purdie and McIntosh 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.sharing.base import SharingShape
from histotl.learn.trunk import TaskTrunks


@register("sharing", "cross_attention")
@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """A trunk a task makes its token; one block of attention adds to it what the other tasks' tokens say.

    The idea of cross-task attention for vectors; the published network works on feature maps. A task alone keeps its
    token as it is.

    Args:
        heads: Of the attention; the greatest number up to this that divides the trunk's width is used.
    """

    heads: int = 4
    optimizer: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise UsageError(f"cross_attention's heads is {self.heads}", hint="give 1 or more, such as 4")

    def build(self, shape: SharingShape) -> CrossAttentionModule:
        """Make the module."""
        return CrossAttentionModule(shape, self.heads)


class CrossAttentionModule(nn.Module):
    """Trunks, and the block that joins them."""

    def __init__(self, shape: SharingShape, heads: int) -> None:
        super().__init__()
        self.trunks = TaskTrunks(shape)
        self.out_dim = self.trunks.out_dim
        self.block = OthersAttention(self.out_dim, heads)

    def common(self, bags: torch.Tensor) -> torch.Tensor:
        """The bag vectors, some numbers hidden by dropout."""
        return self.trunks.enter(bags)

    def own(self, common: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens that have looked at each other."""
        each: tuple[torch.Tensor, ...] = self.trunks(common)
        if len(each) == 1:
            return each
        tokens = torch.stack(each, dim=1)
        joined: torch.Tensor = tokens + self.block(tokens, tokens)
        return joined.unbind(1)

    def penalty(self) -> None:
        """Nothing."""
        return


class OthersAttention(nn.Module):
    """Attention of each task's token on the tokens of the other tasks.

    Args:
        width: h of the tokens.
        heads: At most so many; fewer where h cannot be divided by them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = max(n for n in range(1, min(heads, width) + 1) if width % n == 0)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """What each of ``tokens`` (B, t, h) finds in the rows of ``seen`` (B, t, h) that are not its own; t > 1."""
        asked, given = self.norm(tokens), self.norm(seen)
        parts = [self._split(layer(x)) for layer, x in ((self.query, asked), (self.key, given), (self.value, given))]
        others = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        query, key, value = parts
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        found = F.softmax(logits.masked_fill(~others, -torch.inf), dim=-1) @ value
        out: torch.Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:2], self._heads, -1).transpose(1, 2)
