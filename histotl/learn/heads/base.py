"""The contract of a task head.

A head is a frozen dataclass registered as ``@register("head", kind)`` under the task kind that it serves: ``binary``,
``multiclass``, ``ordinal``, ``regression``. It holds no weights: it says how many outputs the linear layer of its task
has, what the loss of each labelled row is, and how outputs become answers.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Head(Protocol):
    """Loss and decoding of one task kind. n rows, k classes, o outputs."""

    def n_outputs(self, n_classes: int) -> int:
        """Outputs of the linear layer for a task of ``n_classes`` (0 for regression)."""

    def loss(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:
        """Loss of each labelled row.

        Args:
            outputs: float (n, o).
            target: int64 (n,) class indices, or float (n,) standardised values for regression. No missing ones: the
                caller drops unlabelled rows, so that a missing label is the same as an absent row.
            class_weight: float (k,) or None.

        Returns:
            float (n,).
        """

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Class probabilities (n, k), rows summing to 1; for regression the standardised value (n, 1)."""
