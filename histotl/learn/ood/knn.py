"""Distance to the k-th nearest training feature on the unit sphere (Sun et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.ood.base import State
from histotl.learn.recall import default_neighbours


@register("ood", "knn")
@dataclass(frozen=True, kw_only=True)
class Knn:
    """Euclidean distance to the k-th nearest of the training features, all scaled to length 1.

    Args:
        k: Which neighbour; 0 for 1 % of the bank, at least 1 and at most 50.
        bank: Most training features kept; more are thinned evenly at random.
        seed: Of the thinning.
        chunk: Rows in one product while scoring.
    """

    k: int = 0
    bank: int = 4096
    seed: int = 0
    chunk: int = 2048

    def __post_init__(self) -> None:
        if self.k < 0 or self.bank < 1 or self.chunk < 1:
            cure = "give k of 0 or more, bank and chunk of 1 or more"
            raise UsageError(f"knn: k={self.k}, bank={self.bank}, chunk={self.chunk}", hint=cure)

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> State:  # noqa: ARG002
        """Keep the bank; labels are not used."""
        rows = features
        if len(rows) > self.bank:
            generator = torch.Generator().manual_seed(self.seed)
            kept = torch.randperm(len(rows), generator=generator)[: self.bank].sort().values
            rows = rows[kept.to(rows.device)]
        k = self.k or default_neighbours(len(rows))
        return {"bank": F.normalize(rows.float(), dim=1), "k": torch.tensor([min(k, len(rows))])}

    def score(self, state: State, features: torch.Tensor) -> torch.Tensor:
        """Distance float32 (n,), 0 to 2."""
        bank, k = state["bank"], int(state["k"])
        scores = []
        for rows in torch.split(features, self.chunk):
            nearest = (F.normalize(rows.float(), dim=1) @ bank.T).topk(k, dim=1).values[:, -1]
            scores.append((2 - 2 * nearest).clamp(min=0).sqrt())
        return torch.cat(scores) if scores else features.new_zeros(0, dtype=torch.float32)
