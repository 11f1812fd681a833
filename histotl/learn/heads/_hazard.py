"""Times to an event: the partial likelihood of Cox with ties, the baseline hazard, and bins of time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from histotl.learn.heads.base import Floats

Ties = Literal["efron", "breslow"]


def partial_likelihood(score: torch.Tensor, time: torch.Tensor, event: torch.Tensor, *, ties: Ties) -> torch.Tensor:
    """Negative log partial likelihood of Cox's model, divided by the number of events.

    With Efron's ties, the d events of one time leave the risk set one after the other: event l of them (0 … d - 1)
    meets the sum over those at risk less l / d of the sum over the d. Breslow's meet the whole sum each.

    Args:
        score: Log hazard ratio (n,).
        time: Of the event or of the last look (n,).
        event: Whether the event was seen (n,); at least one.
        ties: How equal times of events are counted.
    """
    order = torch.argsort(time, descending=True, stable=True)
    score, time, event = score[order], time[order], event[order]
    _, group, size = torch.unique_consecutive(time, return_inverse=True, return_counts=True)
    last = torch.cumsum(size, dim=0) - 1
    # All who are at risk at a time stand before the last one of that time.
    at_risk = torch.logcumsumexp(score, dim=0)[last][group[event]]
    if ties == "efron":
        tied, rank, deaths = _tied(score[event], group[event], len(size))
        share = torch.exp((tied - at_risk).clamp(max=0.0)) * (rank / deaths)
        at_risk = at_risk + torch.log1p(-share)
    return (at_risk - score[event]).mean()


def _tied(score: torch.Tensor, group: torch.Tensor, n_groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each event: log of the summed hazards of its time's events, its place among them, and their number."""
    deaths = torch.bincount(group, minlength=n_groups)
    top = score.detach().new_full((n_groups,), -torch.inf).scatter_reduce(0, group, score.detach(), "amax")
    total = torch.zeros_like(top).index_add(0, group, torch.exp(score - top[group]))
    first = torch.cumsum(deaths, dim=0) - deaths
    rank = torch.arange(len(group), device=group.device) - first[group]
    return torch.log(total[group]) + top[group], rank.to(score.dtype), deaths[group].to(score.dtype)


def baseline_hazard(score: Floats, time: Floats, event: Floats, at: Floats) -> Floats:
    """Breslow's cumulative baseline hazard at some times: sum over earlier events of 1 / (summed hazards at risk).

    Args:
        score: Log hazard ratios (n,).
        time: (n,).
        event: 1 where the event was seen (n,).
        at: Times (m,).

    Returns:
        (m,).
    """
    order = np.argsort(-time, kind="stable")
    at_risk = np.logaddexp.accumulate(score[order])
    seen = np.sort(time[event > 0])
    # Those at risk at a time are all with that time or a later one.
    held = at_risk[np.searchsorted(-time[order], -seen, side="right") - 1]
    steps = np.concatenate([[0.0], np.cumsum(np.exp(-held))])
    return np.asarray(steps[np.searchsorted(seen, at, side="right")])


def bin_losses(
    outputs: torch.Tensor, time: torch.Tensor, event: torch.Tensor, edges: torch.Tensor, *, alpha: float
) -> torch.Tensor:
    """Negative log-likelihood (n,) of a hazard a bin of time (Zadeh and Schmid 2020).

    An event in bin b costs -log S(b - 1) - log h(b), a row last seen in bin b costs -(1 - alpha) log S(b).

    Args:
        outputs: Logits of the hazards (n, b).
        time: (n,).
        event: (n,) bool.
        edges: Upper ends of the bins (b,); later times fall into the last one.
        alpha: How much less rows without an event count.
    """
    place = torch.bucketize(time.contiguous(), edges[:-1].contiguous())
    survived = torch.cumsum(F.logsigmoid(-outputs), dim=1)
    before = torch.cat([torch.zeros_like(survived[:, :1]), survived[:, :-1]], dim=1)

    def here(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, place[:, None])[:, 0]

    dead = -here(before) - here(F.logsigmoid(outputs))
    return torch.where(event, dead, -(1 - alpha) * here(survived))
