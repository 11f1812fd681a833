"""Which explanation to believe: take tiles away in the order that it gives, and see what becomes of the answer.

Patch flipping (Samek et al. 2017, "Evaluating the visualization of what a deep neural network has learned"; for bags of
tiles Hense et al. 2024, "xMIL"): tiles that matter must drag the answer down when they go first, and must not when
they go last. A slide's faithfulness is the difference of the two mean drops; an order by chance has 0 on average. No
label is looked at: it is the model that is explained, right or wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.learn.explain.base import Explainer, Question
from histotl.learn.readout import RANDOM

MIN_TILES = 4
"""Slides with fewer tiles have no order to speak of."""

STEPS = 20
"""Looks at the answer while the tiles of a slide go."""

RANDOM_ORDERS = 5
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """How faithful a method is over some slides, in units of the read-out (logits).

    Args:
        score: Drop when relevant tiles go first, less drop when they go last, with patient-bootstrap interval.
        first: Mean drop of the answer while the most relevant tiles go first.
        last: The same while they go last.
    """

    score: Estimate
    first: float
    last: float

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**self.score.to_dict(), "most_relevant_first": self.first, "least_relevant_first": self.last}


def drops(
    questions: Sequence[Question], explainers: Mapping[str, Explainer], *, seed: int
) -> dict[str, tuple[float, float]]:
    """Mean drops of one slide's answer, for each method and for orders by chance.

    Args:
        questions: The same bag and the same read-out (o, 1) for each member; at least ``MIN_TILES`` tiles.
        explainers: Name -> method; methods that have no meaning here are left out by the caller.
        seed: Of the orders by chance.

    Returns:
        Name -> (most relevant first, least relevant first).
    """
    found = {name: drops_of(questions, mean_scores(questions, explainer)) for name, explainer in explainers.items()}
    rng = np.random.default_rng(seed)
    by_chance = [drops_of(questions, torch.from_numpy(rng.random((questions[0].n, 1)))) for _ in range(RANDOM_ORDERS)]
    first, last = np.mean(by_chance, axis=0).tolist()
    return {**found, RANDOM: (first, last)}


def drops_of(questions: Sequence[Question], scores: torch.Tensor) -> tuple[float, float]:
    """Mean drops of the answer while tiles go by their scores (n, 1): highest first, and lowest first."""
    order = torch.argsort(-scores[:, 0].cpu(), stable=True)
    n = len(order)
    gone = sorted({n * step // STEPS for step in range(1, STEPS)} - {0})
    parts = [torch.arange(n), *(order[k:] for k in gone), *(order.flip(0)[k:] for k in gone)]
    answers = torch.stack([question.of_parts(parts)[:, 0] for question in questions]).mean(dim=0)
    drop = answers[0] - answers[1:]
    return float(drop[: len(gone)].mean()), float(drop[len(gone) :].mean())


def mean_scores(questions: Sequence[Question], explainer: Explainer) -> torch.Tensor:
    """Scores (n, c) of a bag, mean over the members."""
    return torch.stack([explainer.scores(question) for question in questions]).mean(dim=0)


def towards(questions: Sequence[Question], readout: torch.Tensor) -> list[Question]:
    """The same questions with another read-out."""
    return [replace(question, readout=readout) for question in questions]


def summarise(
    found: Sequence[Mapping[str, tuple[float, float]]], patients: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Faithfulness]:
    """Method -> faithfulness over slides, the most faithful first.

    Args:
        found: For each slide, from :func:`drops`, all with the same methods.
        patients: Patient of each slide.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    unit = np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)
    draws = Resamples.draw(unit, resamples if unit.max() > 0 else 0, seed)
    result = {}
    for name in found[0]:
        pairs: Floats = np.array([slide[name] for slide in found], dtype=np.float64)
        first, last = pairs.mean(axis=0).tolist()
        result[name] = Faithfulness(score=estimate(draws.mean(pairs[:, 0] - pairs[:, 1])), first=first, last=last)
    return dict(sorted(result.items(), key=lambda item: -item[1].score.value))
