"""A decoder with one token a task, which looks for what its task needs (as barspoon; El Nahhas et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.attention import CrossAttention, FeedForward, SelfAttention, check_heads
from histotl.learn.gated import Embedding, check_layers
from histotl.learn.lattice import Position, need_coords


@register("aggregator", "task_tokens")
@dataclass(frozen=True, kw_only=True)
class TaskTokens:
    """One token a task looks at the tiles and at the other tasks' tokens, and becomes the bag vector of its task.

    Args:
        layers: Of attention and feed-forward.
        hidden: Width of tiles, tokens and bag vectors.
        heads: Of attention.
        position: ``coords`` adds each tile's place in the slide; ``none`` leaves places out.
        dropout: On the embedded tiles and in the feed-forward layers while training.
    """

    layers: int = 2
    hidden: int = 512
    heads: int = 8
    position: Literal["coords", "none"] = "none"
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("task_tokens", layers=self.layers, hidden=self.hidden, heads=self.heads, dropout=self.dropout)
        check_heads("task_tokens", self.hidden, self.heads)

    def build(self, in_dim: int, outputs: Outputs) -> TaskTokensModule:
        """Make the module."""
        return TaskTokensModule(in_dim, outputs, self)


class TaskTokensModule(nn.Module):
    """Layers of attention among the tokens of a bag, attention of the tokens to its tiles, and feed-forward."""

    def __init__(self, in_dim: int, outputs: Outputs, spec: TaskTokens) -> None:
        super().__init__()
        width = self.out_dim = spec.hidden
        self.embed = Embedding(in_dim, width, spec.dropout)
        self.position = Position(width) if spec.position == "coords" else None
        self.tokens = nn.Parameter(torch.randn(len(outputs), width) * 0.02)
        self.before = nn.LayerNorm(width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * spec.layers)])
        self.among = nn.ModuleList([SelfAttention(width, spec.heads) for _ in range(spec.layers)])
        self.across = nn.ModuleList([CrossAttention(width, spec.heads) for _ in range(spec.layers)])
        self.forwards = nn.ModuleList([FeedForward(width, spec.dropout) for _ in range(spec.layers)])
        self.last = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        if self.position is not None:
            h = h + self.position(need_coords("task_tokens", coords), offsets)
        h = self.before(h)
        bags, (count, width) = len(offsets) - 1, self.tokens.shape
        tokens = self.tokens.expand(bags, -1, -1)
        inner, weights = torch.arange(bags + 1) * count, h.new_zeros(0)
        norms = iter(self.norms)
        for among, across, forward in zip(self.among, self.across, self.forwards, strict=True):
            flat = next(norms)(tokens).reshape(-1, width)
            tokens = tokens + among(flat, inner).view(bags, count, width)
            seen, weights = across(next(norms)(tokens), h, offsets)
            tokens = forward(tokens + seen)
        return Aggregated(bags=self.last(tokens), weights=weights)
