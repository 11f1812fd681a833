"""Correlated tiles: two layers of self-attention with the tiles' places between them (TransMIL; Shao et al. 2021)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Outputs
from histotl.learn.attention import SelfAttention, check_heads, with_token
from histotl.learn.gated import Embedding, check_layers
from histotl.learn.lattice import Position, lattice, need_coords, neighbour_pairs, slides_of


@register("aggregator", "transmil")
@dataclass(frozen=True, kw_only=True)
class TransMil:
    """Two layers of self-attention; between them every tile learns its place, from level-0 coordinates.

    The paper squares the list of tiles into a made-up grid and approximates the attention with landmarks taken from
    that list; both change with the order of the tiles. Here places are true and the attention is exact.

    Args:
        hidden: Width of the tiles and of the bag vector.
        heads: Of attention.
        position: ``coords`` adds each tile's place in the slide; ``ppeg`` mixes each tile with its neighbours on the
            lattice by a learnt convolution, as the paper does; ``none`` leaves places out.
        kernel: Side of the convolution of ``ppeg`` in tiles, odd.
        dropout: On the embedded tiles while training.
    """

    hidden: int = 512
    heads: int = 8
    position: Literal["coords", "ppeg", "none"] = "coords"
    kernel: int = 7
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("transmil", hidden=self.hidden, heads=self.heads, kernel=self.kernel, dropout=self.dropout)
        check_heads("transmil", self.hidden, self.heads)
        if self.kernel % 2 == 0:
            raise UsageError(f"transmil: kernel={self.kernel}", hint="give an odd side, such as 7")

    def build(self, in_dim: int, outputs: Outputs) -> TransMilModule:  # noqa: ARG002
        """Make the module."""
        return TransMilModule(in_dim, self)


class TransMilModule(nn.Module):
    """h = h + attention(norm(h)), places, h = h + attention(norm(h)); the bag is its class token at the end."""

    def __init__(self, in_dim: int, spec: TransMil) -> None:
        super().__init__()
        width = self.out_dim = spec.hidden
        self.embed = Embedding(in_dim, width, spec.dropout)
        self.token = nn.Parameter(torch.randn(1, width) * 0.02)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attend = nn.ModuleList([SelfAttention(width, spec.heads) for _ in range(2)])
        self.place = _place(width, spec)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        h, inner, tokens = with_token(self.embed(x), offsets, self.token)
        h = h + self.attend[0](self.norms[0](h), inner)
        if self.place is not None:
            places = need_coords("transmil", coords)
            tiles = torch.ones(len(h), dtype=torch.bool, device=h.device).index_fill(0, tokens, value=False)
            rows = torch.nonzero(tiles)[:, 0]
            if isinstance(self.place, LatticeConv):
                added = self.place(h[rows], places, offsets)
            else:
                added = self.place(places, offsets)
            h = h.index_add(0, rows, added)
        h = h + self.attend[1](self.norms[1](h), inner)
        return Aggregated(bags=self.norms[2](h[tokens]))


class LatticeConv(nn.Module):
    """A depthwise convolution over the lattice of tiles; cells without a tile are zero and cost nothing.

    One kernel stands for the paper's three of 7, 5 and 3, whose sum it can be.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        reach = kernel // 2
        self.shifts = [(x, y) for x, y in itertools.product(range(-reach, reach + 1), repeat=2)]
        self.weight = nn.Parameter(torch.randn(len(self.shifts), width) / kernel)

    def forward(self, h: torch.Tensor, coords: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(N, d) and int64 (N, 2) or (N, 3) into (N, d)."""
        slide = slides_of(coords, offsets)
        cells, found = lattice(coords, slide), torch.zeros_like(h)
        for shift, weight in zip(self.shifts, self.weight, strict=True):
            first, second = (rows.to(h.device) for rows in neighbour_pairs(cells, slide, shift))
            if len(first):
                found = found.index_add(0, first, h[second] * weight)
        return found


def _place(width: int, spec: TransMil) -> Position | LatticeConv | None:
    if spec.position == "none":
        return None
    return Position(width) if spec.position == "coords" else LatticeConv(width, spec.kernel)
