"""Losses that bring rows of one class together and keep those of others apart: each looks at all pairs of rows.

n rows. ``target`` is int64 (n,): the class of each row, negative where it is missing; such a row is as good as absent.
Every function gives one loss a row, float (n,), whose mean is the published loss. They are finite for one class and
for one row: a row that has nothing to be compared with costs 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

MOST_ROWS = 2048
"""Rows that are compared with each other at a time; a validation set of 100,000 tiles has 10^10 pairs."""

NEVER = -1e9
"""Logit of a pair that does not count; finite, so that a row without any pair has a gradient, which is 0."""

DISTANCE_MIN = 1e-6
"""Shortest distance: the square root and the logarithm have no slope at 0."""


def pairs(target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs of rows are of one class, and which of different ones: both bool (n, n), False on the diagonal."""
    known = target >= 0
    both, equal = known[:, None] & known, target[:, None] == target
    itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
    return both & equal & ~itself, both & ~equal


def supervised_contrast(unit: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of finding a row of one's own class among all other rows (Khosla et al. 2020, L_out).

    -mean_p log(exp(z_i·z_p / T) / sum_a exp(z_i·z_a / T)), p over the rows of the same class, a over all others.

    Args:
        unit: Rows of length 1, float (n, w).
        target: (n,).
        temperature: T, above 0.
    """
    same, other = pairs(target)
    logits = unit @ unit.T / temperature
    all_of_them = torch.logsumexp(torch.where(same | other, logits, NEVER), dim=1, keepdim=True)
    terms = torch.where(same, all_of_them - logits, 0.0)
    return terms.sum(dim=1) / same.sum(dim=1).clamp_min(1)


def batch_hard_triplet(unit: torch.Tensor, target: torch.Tensor, margin: float) -> torch.Tensor:
    """How far the farthest row of one's own class is behind the nearest of another (Hermans et al. 2017).

    max(0, margin + farthest - nearest) with Euclidean distances; 0 for a row without the one or the other.

    Args:
        unit: Rows of length 1, float (n, w).
        target: (n,).
        margin: By which others are to be farther away, 0 to 2.
    """
    same, other = pairs(target)
    distance = (2 - 2 * unit @ unit.T).clamp_min(DISTANCE_MIN**2).sqrt()
    farthest, nearest = _most(distance, same), -_most(-distance, other)
    there = same.any(dim=1) & other.any(dim=1)
    return torch.where(there, (margin + farthest - nearest).clamp_min(0), 0.0)


def cauchy_hash(codes: torch.Tensor, target: torch.Tensor, gamma: float) -> torch.Tensor:
    """Cross-entropy of "same class" under a Cauchy law of the Hamming distance (Cao et al. 2018, deep Cauchy hashing).

    P(same) = gamma / (gamma + d) with d = b/2 (1 - cosine), which is the Hamming distance of codes of ±1. Pairs of the
    same class count as much in all as those of different ones, however few they are.

    Args:
        codes: float (n, b), about -1 to 1.
        target: (n,).
        gamma: Distance at which two rows are as likely of one class as not, in bits; small ones pull harder.
    """
    same, other = pairs(target)
    unit = F.normalize(codes, dim=1)
    distance = (codes.shape[1] / 2 * (1 - unit @ unit.T)).clamp_min(DISTANCE_MIN)
    near = torch.where(same, torch.log1p(distance / gamma), 0.0).sum(dim=1) / same.sum().clamp_min(1)
    far = torch.where(other, torch.log1p(gamma / distance), 0.0).sum(dim=1) / other.sum().clamp_min(1)
    return (near + far) * (target >= 0).sum()


def cauchy_rounding(codes: torch.Tensor, gamma: float) -> torch.Tensor:
    """What a row's code loses when its numbers become ±1: log(1 + d(|code|, 1) / gamma) (the same paper).

    Args:
        codes: float (n, b), about -1 to 1.
        gamma: As in :func:`cauchy_hash`.
    """
    bits = codes.shape[1]
    cosine = F.normalize(codes.abs(), dim=1).sum(dim=1) / bits**0.5
    return torch.log1p((bits / 2 * (1 - cosine)).clamp_min(0) / gamma)


def in_groups(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    target: torch.Tensor,
    most: int = MOST_ROWS,
) -> torch.Tensor:
    """A loss (n,) of rows that are compared within groups of at most ``most``.

    Group i holds every g-th row from the i-th on: neighbours, which are tiles of one slide, are spread over all groups.

    Args:
        loss: Rows and their classes into one number a row.
        rows: (n, …).
        target: (n,).
        most: Rows of a group.
    """
    n_groups = -(-len(rows) // most)
    if n_groups < 2:
        return loss(rows, target)
    places = [torch.arange(i, len(rows), n_groups, device=rows.device) for i in range(n_groups)]
    found = torch.cat([loss(rows[place], target[place]) for place in places])
    return found[torch.argsort(torch.cat(places))]


def _most(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Largest of the chosen values of each row (n,); of a row without any, a number that means nothing."""
    return torch.where(chosen, values, NEVER).amax(dim=1)
