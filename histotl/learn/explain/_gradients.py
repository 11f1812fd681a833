"""Gradients of the answer with respect to tiles, summed over a path."""

from __future__ import annotations

import torch

from histotl.core.errors import UsageError
from histotl.learn.explain.base import Question


def along_path(question: Question, points: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Σ_j share_j ∇L(m + point_j (x - m)) · (x - m) of every tile: float64 (n, c); m is the mean training tile.

    Args:
        question: The bag.
        points: (p,) places on the straight line from the mean tile (0) to the tiles themselves (1).
        shares: (p,) weights of the places.

    Raises:
        UsageError: The answer changes in steps only.
    """
    m = question.network.mean
    step, columns = question.x - m, question.readout.shape[1]
    total = torch.zeros(question.n, columns, dtype=torch.float64, device=question.x.device)
    with torch.enable_grad():
        for point, share in zip(points.tolist(), shares.tolist(), strict=True):
            x = (m + point * step).requires_grad_()
            answer = question.of_tiles(x)
            if not answer.requires_grad:
                cure = "use leave_one_out; or let near neighbours weigh more when training: temperature=0.07"
                raise UsageError(f"the answer of task {question.task!r} counts votes: it has no slope", hint=cure)
            for column in range(columns):
                (gradient,) = torch.autograd.grad(answer[column], x, retain_graph=column + 1 < columns)
                total[:, column] += share * (gradient * step).sum(dim=1)
    return total
