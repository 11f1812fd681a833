"""Two tiers: pseudo-bags of some tiles each, and a bag of their distilled vectors (DTFD-MIL; Zhang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from histotl.core.registry import register
from histotl.learn.aggregators.base import Aggregated, Judge, Outputs, split_outputs
from histotl.learn.gated import Embedding, GatedScores, check_layers
from histotl.learn.segments import (
    owners,
    segment_argmax,
    segment_ranks,
    segment_softmax,
    segment_weighted_sum,
)

DIRECTION_SEED = 20260101


@register("aggregator", "dtfd")
@dataclass(frozen=True, kw_only=True)
class Dtfd:
    """Double tier: attention within pseudo-bags, each trained with its bag's labels, then attention over them.

    Tiles are dealt out like cards: in random order while training; else in the order of their features along a fixed
    direction, so that neither chance nor the order of the tiles in a list plays a part.

    Args:
        groups: Pseudo-bags of a bag; one for each tile where it has fewer.
        distil: What stands for a pseudo-bag: its pooled vector (``afs``), or its most and its least attended tile
            (``maxmin``).
        hidden: Width of the embedded tiles.
        attention: Width of the attention layers.
        dropout: On the embedded tiles while training.
    """

    groups: int = 5
    distil: Literal["afs", "maxmin"] = "afs"
    hidden: int = 512
    attention: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        check_layers("dtfd", groups=self.groups, hidden=self.hidden, attention=self.attention, dropout=self.dropout)

    def build(self, in_dim: int, outputs: Outputs) -> DtfdModule:
        """Make the module."""
        return DtfdModule(in_dim, outputs, self)


class DtfdModule(nn.Module):
    """Bag vectors of the second tier; answers of the first are trained beside them."""

    direction: torch.Tensor

    def __init__(self, in_dim: int, outputs: Outputs, spec: Dtfd) -> None:
        super().__init__()
        self.out_dim, self.outputs, self.spec = spec.hidden, outputs, spec
        self.embed = Embedding(in_dim, spec.hidden, spec.dropout)
        self.first = GatedScores(spec.hidden, spec.attention)
        self.answer = nn.Linear(spec.hidden, sum(n for _, n in outputs))
        self.second = GatedScores(spec.hidden, spec.attention)
        generator = torch.Generator().manual_seed(DIRECTION_SEED)
        self.register_buffer("direction", torch.randn(in_dim, generator=generator), persistent=False)

    def forward(self, x: torch.Tensor, offsets: torch.Tensor, coords: torch.Tensor | None = None) -> Aggregated:  # noqa: ARG002
        """See :class:`histotl.learn.aggregators.base.AggregatorModule`."""
        # Row by row and not as a product, whose last bits depend on the rows beside.
        key = torch.rand(len(x), device=x.device) if self.training else (x.detach() * self.direction).sum(dim=1)
        order, groups, bags = _deal(key, offsets, self.spec.groups)
        h = self.embed(x)[order]
        scores = self.first(h)[:, 0]
        inner = segment_softmax(scores, groups)
        pooled = segment_weighted_sum(h, inner, groups)
        if self.spec.distil == "afs":
            rows, vectors, starts = None, pooled, bags
        else:
            ends = segment_argmax(torch.stack([scores, -scores], dim=1), groups)
            rows, starts = ends.flatten(), 2 * bags
            vectors = h[rows]
        outer = segment_softmax(self.second(vectors)[:, 0], starts)
        if rows is None:
            shares = inner * outer[owners(groups, x.device)]
        else:
            shares = torch.zeros_like(inner).index_add(0, rows, outer)
        return Aggregated(
            bags=segment_weighted_sum(vectors, outer, starts),
            weights=torch.empty_like(shares).index_copy(0, order, shares),
            state={"pooled": pooled, "owner": owners(bags, x.device)},
        )

    def auxiliary(self, found: Aggregated, judge: Judge) -> torch.Tensor:
        """See :class:`histotl.learn.aggregators.base.Supervised`."""
        answers = split_outputs(self.answer(found.state["pooled"]), self.outputs)
        return judge.loss(answers, found.state["owner"])


def _deal(key: torch.Tensor, offsets: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Deal the tiles of every bag out in the order of a key.

    Returns:
        int64 (N,): the tiles, pseudo-bag after pseudo-bag; int64 (P + 1,): offsets of the pseudo-bags; int64 (B + 1,):
        offsets of the bags in pseudo-bags.
    """
    ranks, owner = segment_ranks(key, offsets).cpu(), owners(offsets.cpu())
    names = owner * count + ranks % count
    order = (names * (int(ranks.max()) + 1) + ranks).argsort()
    sizes = torch.unique_consecutive(names[order], return_counts=True)[1]
    per_bag = torch.diff(offsets.cpu()).clamp(max=count)
    groups, bags = (torch.cat([each.new_zeros(1), each.cumsum(0)]) for each in (sizes, per_bag))
    return order.to(key.device), groups, bags
