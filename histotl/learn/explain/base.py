"""The contract of an explanation: how much each tile of a bag speaks for an answer.

An explanation is a frozen dataclass registered as ``@register("explain", name)``. It sees one network and one bag, all
in float64, because most of what it computes are small differences of large numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from histotl.learn.aggregators.base import Aggregated
from histotl.learn.network import Network, evaluating

BLOCK_ROWS = 16384
"""Tiles in one pass when many smaller bags are answered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One network, one bag, and what of the answer is to be explained. n tiles, o outputs, c columns.

    Args:
        network: Float64, in evaluation mode; see :func:`for_questions`.
        x: float64 (n, D) tiles.
        coords: int64 (n, 2) level-0 corners, or None.
        task: Name of the task.
        readout: float64 (o, c): each column is a weighted sum of the task's outputs.
        covariates: float64 (1, m): what the network is told of the bag beside its tiles, or None. It stays as it is.
    """

    network: Network
    x: torch.Tensor
    coords: torch.Tensor | None
    task: str
    readout: torch.Tensor
    covariates: torch.Tensor | None = None

    @property
    def n(self) -> int:
        """Number of tiles."""
        return len(self.x)

    def pooled(self) -> Aggregated:
        """What the aggregator makes of the whole bag."""
        with evaluating(self.network):
            return self.network.pool(self.x, torch.tensor([0, self.n]), self.coords)

    def of_bags(self, bags: torch.Tensor) -> torch.Tensor:
        """Read-out (B, c) of bag vectors (B, d), in blocks."""
        with evaluating(self.network):
            blocks = ((part, self._known(len(part))) for part in torch.split(bags, BLOCK_ROWS))
            parts = [self.network.answer(part, known)[self.task] @ self.readout for part, known in blocks]
        return torch.cat(parts)

    def of_tiles(self, x: torch.Tensor) -> torch.Tensor:
        """Read-out (c,) of the bag with other tiles (n, D) in the same places; gradients flow."""
        out: torch.Tensor = self.network(x, torch.tensor([0, len(x)]), self.coords, self.covariates).tasks[self.task]
        return (out @ self.readout)[0]

    def answer(self) -> torch.Tensor:
        """Read-out (c,) of the whole bag."""
        with evaluating(self.network):
            return self.of_tiles(self.x)

    def of_parts(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Read-out (P, c) of the bag with only some of its tiles: P lists of places, none empty."""
        found, start = [], 0
        while start < len(parts):
            rows, stop = 0, start
            while stop < len(parts) and (stop == start or rows + len(parts[stop]) <= BLOCK_ROWS):
                rows, stop = rows + len(parts[stop]), stop + 1
            found.append(self._of_some(parts[start:stop]))
            start = stop
        return torch.cat(found)

    def _of_some(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        places = torch.cat(list(parts))
        offsets = torch.tensor([0, *map(len, parts)]).cumsum(0)
        coords = None if self.coords is None else self.coords[places]
        with evaluating(self.network):
            known = self._known(len(parts))
            out: torch.Tensor = self.network(self.x[places], offsets, coords, known).tasks[self.task]
            return out @ self.readout

    def _known(self, n: int) -> torch.Tensor | None:
        """The same of n bags made of this one."""
        return None if self.covariates is None else self.covariates.expand(n, -1)


class Explainer(Protocol):
    """Scores the tiles of one bag."""

    signed: ClassVar[bool]
    """Whether a score says for or against (it then turns its sign with the read-out), or only how much."""

    def scores(self, question: Question) -> torch.Tensor:
        """Float64 (n, c): how much each tile speaks for each column of the read-out; NaN where it cannot be said.

        Raises:
            UsageError: It has no meaning for this network; the hint names one that has.
        """


def for_questions(network: Network) -> Network:
    """A copy in float64 and evaluation mode whose weights take no gradients."""
    return copy.deepcopy(network).double().eval().requires_grad_(requires_grad=False)
