"""A transformer over the tiles of a slide, with positions from their coordinates (as STAMP; El Nahhas et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.attention import FeedForward, SelfAttention, check_heads, with_token
from histotl.learn.gated import Embedding, check_layers
from histotl.learn.lattice import Position, need_coords


@register("aggregator", "transformer")
@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Self-attention among all tiles of a slide and a class token; exact, so its cost grows with the square of tiles.

    Args:
        layers: Of attention and feed-forward.
        hidden: Width of the tiles and of the bag vector.
        heads: Of attention.
        position: ``coords`` adds each tile's place in the slide; ``none`` leaves places out.
        dropout: On the embedded tiles and in the feed-forward layers while training.
    """

    layers: int = 2
    hidden: int = 512
    heads: int = 8
    position: Literal["coords", "none"] = "coords"
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("transformer", layers=self.layers, hidden=self.hidden, heads=self.heads, dropout=self.dropout)
        check_heads("transformer", self.hidden, self.heads)

    def build(self, in_dim: int, outputs: Outputs) -> TransformerModule:  # noqa: ARG002
        """Make the module."""
        return TransformerModule(in_dim, self)


class TransformerModule(nn.Module):
    """h = h + attention(norm(h)), h = h + mlp(norm(h)); the bag is its class token at the end."""

    def __init__(self, in_dim: int, spec: Transformer) -> None:
        super().__init__()
        width = self.out_dim = spec.hidden
        self.embed = Embedding(in_dim, width, spec.dropout)
        self.position = Position(width) if spec.position == "coords" else None
        self.token = nn.Parameter(torch.randn(1, width) * 0.02)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(spec.layers)])
        self.attend = nn.ModuleList([SelfAttention(width, spec.heads) for _ in range(spec.layers)])
        self.forwards = nn.ModuleList([FeedForward(width, spec.dropout) for _ in range(spec.layers)])
        self.last = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h = self.embed(x)
        if self.position is not None:
            h = h + self.position(need_coords("transformer", coords), offsets)
        h, offsets, places = with_token(h, offsets, self.token)
        for norm, attend, forward in zip(self.norms, self.attend, self.forwards, strict=True):
            h = forward(h + attend(norm(h), offsets))
        return Aggregated(bags=self.last(h[places]))
