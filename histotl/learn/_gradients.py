"""Gradients of several tasks, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

Gradients = list[torch.Tensor | None]
"""One for each tensor of a list; None for what the loss does not depend on."""


def gradients(loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Gradients:
    """Of a loss with regard to tensors; the graph stays."""
    return list(torch.autograd.grad(loss, list(tensors), retain_graph=True, allow_unused=True))


def shared(each: Mapping[str, Gradients]) -> list[bool]:
    """For each tensor, whether at least two tasks depend on it."""
    return [sum(one is not None for one in column) > 1 for column in zip(*each.values(), strict=True)]


def gramian(rows: Sequence[Sequence[torch.Tensor | None]]) -> npt.NDArray[np.float64]:
    """Inner products of tasks' gradients, float64 (t, t): one copy of t² numbers from the device.

    Args:
        rows: For each task its gradients of the same tensors; None counts as zero.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    parts = []
    for column in zip(*rows, strict=True):
        like = next((one for one in column if one is not None), None)
        if like is not None:
            flat = torch.stack([torch.zeros_like(like) if one is None else one for one in column]).flatten(1)
            parts.append(flat @ flat.T)
    if parts:
        total = torch.stack(parts).sum(dim=0).double().cpu()
    return np.asarray(total.numpy())


def weighed(column: Sequence[torch.Tensor | None], weights: Sequence[float]) -> torch.Tensor | None:
    """Weighted sum of one tensor's gradients; None where no task depends on it."""
    found = [weight * one for one, weight in zip(column, weights, strict=True) if one is not None]
    return torch.stack(found).sum(dim=0) if found else None


@contextmanager
def moved(parameters: Sequence[torch.Tensor], by: Sequence[torch.Tensor | None]) -> Iterator[None]:
    """Parameters displaced within the block; after it they have exactly the values from before."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, step in zip(parameters, by, strict=True):
            if step is not None:
                parameter.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def uphill(
    parameters: Sequence[torch.Tensor], slopes: Gradients, rho: float, *, adaptive: bool = False
) -> list[torch.Tensor | None]:
    """The displacement of length ``rho`` along the gradient (Foret et al. 2021).

    Args:
        parameters: Where the gradient was taken.
        slopes: The gradient.
        rho: Length.
        adaptive: Measure the length in units of each parameter's own size (Kwon et al. 2021).
    """
    sizes = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
    scaled = [None if g is None else g * s for g, s in zip(slopes, sizes, strict=True)]
    found = [g for g in scaled if g is not None]
    if not found:
        return scaled
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in found]))
    factor = rho / (norm + 1e-12)
    return [None if g is None else factor * g * s for g, s in zip(scaled, sizes, strict=True)]
