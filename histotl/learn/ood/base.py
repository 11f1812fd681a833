"""The contract of an out-of-distribution (OOD) detector on cached features. Higher score = more OOD.

A detector is a frozen dataclass registered as ``@register("ood", name)``; fitting gives a state of plain tensors that
is stored in the model file, and scoring is a function of that state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

State = Mapping[str, torch.Tensor]


class Detector(Protocol):
    """Scores how far a feature lies from the training features. n rows, d wide."""

    def fit(self, features: torch.Tensor, labels: torch.Tensor | None) -> State:
        """Fit on training features.

        Args:
            features: float (n, d); only rows with finite numbers (the caller refuses others).
            labels: int64 (n,) classes, -1 where unknown; None to fit one cluster.
        """

    def score(self, state: State, features: torch.Tensor) -> torch.Tensor:
        """Score float (n, d) into float32 (n,); does not depend on the batch split."""
