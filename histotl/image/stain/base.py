"""The contract of a stain normaliser.

A normaliser is a frozen dataclass registered as ``@register("stain", name)``. It is fitted once a slide on a sample of
its tissue tiles and gives back a :class:`StainTransform`, which is applied to batches on the model's device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class StainTransform(Protocol):
    """The fitted state for one slide: a pure function of the tiles, the same on any batch split."""

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 RGB (b, h, w, 3) to the same shape and type, on the tensor's own device."""

    @property
    def state(self) -> Mapping[str, object]:
        """The fitted numbers as plain JSON values, for the file's record."""


class StainNormalizer(Protocol):
    """Fits a transform on a slide."""

    @property
    def needs_fit(self) -> bool:
        """Whether :meth:`fit` looks at the sample at all; the engine reads no sample otherwise."""

    def fit(self, sample: torch.Tensor) -> StainTransform:
        """Estimate the slide's stain.

        Args:
            sample: uint8 RGB (n, h, w, 3), tissue tiles of one slide.

        Raises:
            StainError: Too little stained tissue to estimate from; says how much was seen.
        """
