"""What of a task's outputs is explained: weighted sums of logits, which are what adds up over tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.learn.task import Task

EXPECTED = "expected"
"""Name of the one column of an ordinal task: the sum of its step logits, which rises with the grade."""


RANDOM = "random"
"""Name under which orders by chance stand beside the methods of explanation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """Named weighted sums of o outputs.

    Args:
        names: One for each column: the class that it speaks for, ``expected`` for grades, empty for the only number.
        matrix: float64 (o, c).
    """

    names: tuple[str, ...]
    matrix: torch.Tensor

    def towards_answer(self, answer: torch.Tensor) -> torch.Tensor:
        """Read-out float64 (o, 1) that is high because the answer is what it is.

        Of several columns it is the largest one's; a single column is turned where it is negative: away from the
        positive class, from higher grades, from numbers above the training mean.

        Args:
            answer: (c,), read with this read-out.
        """
        if len(self.names) > 1:
            best = int(answer.argmax())
            return self.matrix[:, best : best + 1]
        return self.matrix if float(answer[0]) >= 0 else -self.matrix


def readout_of(task: Task, n_outputs: int) -> Readout:
    """The read-out of a task with ``n_outputs`` outputs.

    A softmax does not see what all logits have in common, so neither do the columns of a multiclass task: each is its
    class's logit less the mean of all.
    """
    one = torch.eye(n_outputs, dtype=torch.float64)
    if task.nature.ordered and n_outputs == task.n_classes - 1:
        return Readout(names=(EXPECTED,), matrix=one.sum(dim=1, keepdim=True))
    if task.is_classification and not task.nature.ordered and n_outputs == task.n_classes > 1:
        return Readout(names=task.classes, matrix=one - 1 / n_outputs)
    if n_outputs == 1:
        return Readout(names=(task.classes[-1] if task.classes else "",), matrix=one)
    names = task.classes if len(task.classes) == n_outputs else tuple(f"output_{i}" for i in range(n_outputs))
    return Readout(names=names, matrix=one)
