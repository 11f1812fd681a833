"""Where what is known of a case meets what its tiles say: behind the aggregator, before what tasks share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from histotl.learn.covariates import Blocks
from histotl.learn.trunk import REDUNDANT_WIDTH

COPIES = 16
"""Times that covariates are put beside a wide vector. Half of a trunk's input is hidden in a training step: a wide
vector has what is hidden elsewhere too, and a single number has not. Of a narrow one less is hidden, and fewer do."""


class Fusion(nn.Module):
    """Vectors of bags with the columns of :class:`histotl.learn.covariates.CovariateEncoder`.

    Columns are appended, or scale and shift the vector: x (1 + γ) + β with γ and β linear in them, and 0 at the start.

    Args:
        width: d of the vectors of bags.
        blocks: How the columns are grouped: those that are appended first.
        dropout: Chance that a covariate of a case is hidden in a training step, as if it were missing.
    """

    spread: torch.Tensor
    missing: torch.Tensor

    def __init__(self, width: int, blocks: Blocks, dropout: float = 0.0) -> None:
        super().__init__()
        widths = {how: sum(n for _, fusion, n in blocks if fusion == how) for how in ("concat", "film")}
        self._beside, self._dropout = widths["concat"], dropout
        self._copies = max(1, COPIES * min(width, REDUNDANT_WIDTH) // REDUNDANT_WIDTH)
        self.out_dim = width + self._copies * self._beside
        film = widths["film"]
        # Zeros are drawn from no stream: what tasks share begins with the weights that it has without covariates.
        self.weight = nn.Parameter(torch.zeros(2 * width, film)) if film else None
        self.bias = nn.Parameter(torch.zeros(2 * width)) if film else None
        sizes = torch.tensor([n for _, _, n in blocks])
        owner = torch.arange(len(blocks)).repeat_interleave(sizes)
        self.register_buffer("spread", F.one_hot(owner, len(blocks)).T.float(), persistent=False)
        ends = torch.zeros(len(owner)).index_fill(0, sizes.cumsum(0) - 1, 1.0)
        self.register_buffer("missing", ends, persistent=False)

    def forward(self, bags: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        """Float (B, d) or, one for each task, (B, t, d), and (B, c), into the same with ``out_dim`` numbers."""
        if self.training and self._dropout:
            covariates = self._hidden(covariates)
        if bags.ndim == 3:
            covariates = covariates[:, None].expand(-1, bags.shape[1], -1)
        beside, around = covariates[..., : self._beside], covariates[..., self._beside :]
        if self.weight is not None:
            scale, shift = F.linear(around, self.weight, self.bias).chunk(2, dim=-1)
            bags = bags * (1 + scale) + shift
        return torch.cat([bags, *[beside] * self._copies], dim=-1) if self._beside else bags

    def _hidden(self, covariates: torch.Tensor) -> torch.Tensor:
        """With some of the covariates of some cases missing."""
        chance = torch.rand(len(covariates), len(self.spread), device=covariates.device)
        gone = (chance < self._dropout).to(covariates) @ self.spread
        return covariates * (1 - gone) + self.missing * gone
