"""Operations on packed bags: rows of all bags in one matrix, with offsets; never padded.

The heavy products run on the packed matrix. Only reductions are split, by one ``split`` each (whose backward is one
concatenation), so a bag's result does not depend on the bags beside it.
"""

from __future__ import annotations

import torch


def lengths(offsets: torch.Tensor) -> list[int]:
    """Rows of each bag, from offsets int64 (B + 1,)."""
    return torch.diff(offsets).tolist()


def segment_mean(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Mean of the rows of each bag: (N, D) into (B, D)."""
    return torch.stack([part.mean(dim=0) for part in torch.split(x, lengths(offsets))])


def segment_softmax(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Softmax within each bag: (N,) into (N,), summing to 1 in every bag."""
    return torch.cat([part.softmax(dim=0) for part in torch.split(scores, lengths(offsets))])


def segment_weighted_sum(x: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the rows of each bag: (N, D) and (N,) into (B, D)."""
    sizes = lengths(offsets)
    return torch.stack([w @ part for w, part in zip(torch.split(weights, sizes), torch.split(x, sizes), strict=True)])
