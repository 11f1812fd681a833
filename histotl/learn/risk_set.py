"""The whole training set behind a loss that cannot be split by rows.

Cox's partial likelihood compares an event with all who were at risk. In a step of 16 slides there are few of them, and
the likelihood of the step alone is another, noisier one. So the last score of every training row is kept: the rows of a
step are differentiable, the others enter as numbers, and the gradient of the rows in the step is that of the likelihood
of all rows that have a score. When all rows are in one step it is exactly the full partial likelihood.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch

from histotl.learn.heads.base import Joint


class RiskSet:
    """Labels and last scores of the training rows of one task.

    Args:
        target: (n, c) labels, NaN where missing.
    """

    def __init__(self, target: npt.NDArray[np.float64]) -> None:
        self._target = torch.tensor(target, dtype=torch.float32)
        self._scores = torch.full((len(target), 1), torch.nan)

    def empty(self) -> RiskSet:
        """The same rows, without scores."""
        other = copy.copy(self)
        other._scores = torch.full_like(self._scores, torch.nan)
        return other

    def to(self, device: torch.device) -> None:
        """Move both."""
        self._target, self._scores = self._target.to(device), self._scores.to(device)

    def forget(self) -> None:
        """No row has a score."""
        self._scores.fill_(torch.nan)

    def loss(self, head: Joint, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        """Loss over all rows with a score; None where these say nothing.

        The value is the mean over all; the gradient is scaled by (rows with a score) / (rows of the step), so that its
        expectation over steps is that of the full likelihood, as it is for losses that are means over rows.

        Args:
            head: Whose loss.
            outputs: Of labelled rows of a step (b, 1).
            target: Their labels, and their number in the last column: NaN for rows of other sets, whose loss is that
                of these rows alone.
        """
        numbers = target[:, -1]
        if bool(torch.isnan(numbers).any()):
            return head.joint_loss(outputs, target[:, :-1])
        rows = numbers.long()
        scores = self._scores.to(outputs.dtype).index_put((rows,), outputs)
        if torch.is_grad_enabled():
            self._scores[rows] = outputs.detach().to(self._scores.dtype)
        seen = ~torch.isnan(scores[:, 0])
        found = head.joint_loss(scores[seen], self._target[seen])
        if found is None:
            return None
        factor = int(seen.sum()) / len(rows)
        return found.detach() + factor * (found - found.detach())
