"""How sturdy features and predictions are when slides are restained a little: cosines and flips.

Every slide is restained as a whole, as another laboratory would have stained it, several times at each strength. The
draws of a slide follow from its name alone, and those of a strength are those of another one, scaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.core.registry import create
from histotl.evaluate.metrics import Floats, Ints, divide
from histotl.image.augment.base import Augmentation

Features = npt.NDArray[np.floating]

LOW = 0.05
"""Quantile of the cosines that is shown beside their mean: the tiles that suffer most."""


@dataclass(frozen=True, kw_only=True)
class Sturdiness:
    """Features of one backbone at one strength of jitter.

    Args:
        backbone: Its name.
        strength: Sigma and bias of the jitter.
        cosine: Mean over tiles of the cosine between features before and after.
        low: 5th percentile of the same.
        centred: Mean cosine after the mean feature vector of all plain tiles was taken off both: features that share
            a large constant part have high cosines whatever happens.
        centred_low: 5th percentile of the same.
    """

    backbone: str
    strength: float
    cosine: Estimate
    low: Estimate
    centred: Estimate
    centred_low: Estimate


@dataclass(frozen=True, kw_only=True)
class FlipRate:
    """How often answers of the model change at one strength of jitter.

    Args:
        task: Name.
        unit: What is answered for: ``slide`` or ``tile``.
        strength: Sigma and bias of the jitter.
        answers: Restained answers that were compared.
        rate: Share of them with another class than without jitter.
    """

    task: str
    unit: str
    strength: float
    answers: int
    rate: Estimate


def restain(tiles: torch.Tensor, *, strength: float, slide_id: str, draw: int, seed: int) -> torch.Tensor:
    """All tiles of a slide, uint8 RGB (n, h, w, 3), under one draw of stain jitter."""
    jitter = cast("Augmentation", create("augment", f"hed_jitter(sigma={strength!r}, bias={strength!r})"))
    one = crc32(f"{seed}/{slide_id}/{draw}".encode())
    return jitter(tiles, torch.full((len(tiles),), one, dtype=torch.int64, device=tiles.device))


def cosines(one: Features, other: Features) -> Floats:
    """Cosine of each pair of rows, (n, d) twice to (n,); 1 for two rows that are equal, NaN for a row of zeros."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    product = (one * other).sum(axis=1)
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.clip(divide(product, lengths), -1, 1)


def sturdiness(
    backbone: str,
    strength: float,
    plain: Sequence[Features],
    jittered: Sequence[Sequence[Features]],
    resamples: Resamples,
) -> Sturdiness:
    """Compare features before and after.

    Args:
        backbone: Its name.
        strength: Of the jitter.
        plain: Features of the tiles of each of s slides, (n, d) each.
        jittered: For each slide, the same of every draw.
        resamples: Draws of the slides.
    """
    centre = np.concatenate(plain).mean(axis=0, dtype=np.float64)
    slide = np.repeat(np.arange(len(plain)), [len(one) * len(many) for one, many in zip(plain, jittered, strict=True)])
    rows = Resamples(unit=resamples.unit[slide], weights=resamples.weights)

    def compared(shift: Floats) -> tuple[Estimate, Estimate]:
        found = np.concatenate(
            [cosines(one - shift, other - shift) for one, many in zip(plain, jittered, strict=True) for other in many]
        )
        return estimate(rows.mean(found)), estimate(rows.rows(lambda weights: weighted_quantile(found, LOW, weights)))

    cosine, low = compared(np.zeros_like(centre))
    centred, centred_low = compared(centre)
    return Sturdiness(
        backbone=backbone, strength=strength, cosine=cosine, low=low, centred=centred, centred_low=centred_low
    )


def weighted_quantile(values: Floats, share: float, weights: Floats) -> Floats:
    """The smallest value that at least a share of the weight does not exceed: (n,) and weights (n, b) to (b,)."""
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order], axis=0)
    first = np.argmax(mass >= share * mass[-1] * (1 - 1e-12), axis=0)
    return np.asarray(values[order][first], dtype=np.float64)


def flip_rates(
    plain: Sequence[Mapping[tuple[str, str], Ints]],
    jittered: Sequence[Mapping[tuple[float, int], Mapping[tuple[str, str], Ints]]],
    resamples: Resamples,
) -> tuple[FlipRate, ...]:
    """Compare answers before and after.

    Args:
        plain: For each of s slides, (task, unit) -> class of every answer.
        jittered: For each slide, (strength, draw) -> the same.
        resamples: Draws of the slides.
    """
    rates = []
    for task, unit in plain[0]:
        for strength in sorted({strength for strength, _ in jittered[0]}):
            flipped, slide = [], []
            for place, (before, after) in enumerate(zip(plain, jittered, strict=True)):
                for (level, _), answers in after.items():
                    if level == strength:
                        flipped.append((answers[task, unit] != before[task, unit]).astype(np.float64))
                        slide.append(np.full(len(flipped[-1]), place))
            rows = Resamples(unit=resamples.unit[np.concatenate(slide)], weights=resamples.weights)
            found = np.concatenate(flipped)
            rate = estimate(rows.mean(found))
            rates.append(FlipRate(task=task, unit=unit, strength=strength, answers=len(found), rate=rate))
    return tuple(rates)
