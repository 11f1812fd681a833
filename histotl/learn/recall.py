"""Training rows that a network keeps, and the vote of those nearest to a new one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

SHARE_MIN = 1e-6
"""A class without a vote counts as this share of them: its logarithm is finite, and validation can raise it."""

CELLS = 1 << 24
"""Rows times kept rows that are compared in one product."""

LEAST_ROWS = 1024
"""Fewer kept rows make no larger block: their votes take room, too."""

MOST_NEIGHBOURS = 50
"""Most votes where their number is not given."""

LEAST_VOTES = 10
"""Fewest."""


def default_neighbours(n: int) -> int:
    """1 % of n kept rows, at least 1 and at most 50."""
    return min(MOST_NEIGHBOURS, max(1, math.floor(0.01 * n + 0.5)))


def default_votes(n: int) -> int:
    """The same, at least 10 where there are as many: one vote says nothing of how sure it is."""
    return min(n, max(LEAST_VOTES, default_neighbours(n)))


class Recall(nn.Module):
    """Stands behind the outputs of a task: each row's embedding becomes the log share of votes of every class.

    N rows are kept, as vectors of length 1 (or codes of ±1), with the classes that they vote for and where they came
    from. Everything is in the state of the module, so that a model's file has it.

    Args:
        rows: N.
        width: w, numbers of an embedding: the first w of the outputs.
        n_classes: k.
        neighbours: Votes; 0 for :func:`default_votes`.
        temperature: Of votes that weigh exp(cosine / temperature); 0 for votes that all weigh alike.
        binary: Rows are compared by the signs of their numbers only, which are kept as one byte each.
    """

    bank: torch.Tensor
    votes: torch.Tensor
    case: torch.Tensor
    corner: torch.Tensor

    def __init__(
        self, rows: int, width: int, n_classes: int, *, neighbours: int, temperature: float, binary: bool
    ) -> None:
        super().__init__()
        self.width, self.temperature, self.binary = width, temperature, binary
        self.neighbours = min(rows, neighbours or default_votes(rows))
        self.register_buffer("bank", torch.zeros(rows, width, dtype=torch.int8 if binary else torch.float32))
        self.register_buffer("votes", torch.zeros(rows, n_classes))
        # Number of the training case, and the level-0 corner of the tile where rows are tiles of slides, else -1.
        self.register_buffer("case", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("corner", torch.full((rows, 2), -1, dtype=torch.int64))

    def fill(self, outputs: torch.Tensor, votes: torch.Tensor, case: torch.Tensor, corner: torch.Tensor | None) -> None:
        """Keep rows.

        Args:
            outputs: Of the task before this module, float (N, o).
            votes: Share that each row gives to each class, float (N, k).
            case: int64 (N,).
            corner: int64 (N, 2), or None.
        """
        self.bank.copy_(self.embedded(outputs))
        self.votes.copy_(votes)
        self.case.copy_(case)
        if corner is not None:
            self.corner.copy_(corner)

    def embedded(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs (n, o) as vectors (n, w) of length 1, or as codes of ±1, whose sums are exact."""
        found = outputs[:, : self.width]
        if self.binary:
            one = found.new_ones(())
            return torch.where(found >= 0, one, -one)
        return F.normalize(found, dim=1)

    def cosines(self, embedded: torch.Tensor) -> torch.Tensor:
        """Cosine (n, N) of some rows, from :meth:`embedded`, with every row that is kept."""
        return embedded @ self.bank.to(embedded.dtype).T / (self.width if self.binary else 1)

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs (n, o) into log shares of votes (n, k)."""
        block = max(1, CELLS // max(len(self.bank), LEAST_ROWS))
        return torch.cat([self._log_shares(part) for part in torch.split(self.embedded(outputs), block)])

    def _log_shares(self, embedded: torch.Tensor) -> torch.Tensor:
        near, at = self.cosines(embedded).topk(self.neighbours, dim=1)
        weight = torch.ones_like(near)
        if self.temperature:
            weight = torch.exp((near - near[:, :1]) / self.temperature)
        cast = (weight[:, :, None] * self.votes.to(weight.dtype)[at]).sum(dim=1)
        return torch.log((cast / weight.sum(dim=1, keepdim=True)).clamp_min(SHARE_MIN))
