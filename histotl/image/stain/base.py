"""The contract of a stain normaliser.

A normaliser is a frozen dataclass registered as ``@register("stain", name)``. It is fitted once a slide on a sample of
its tissue tiles and gives back a :class:`StainTransform`, which is applied to batches on the model's device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self, runtime_checkable

import torch

from histotl.image._planes import is_exact
from histotl.image.estimate import Estimate


def pixels_of(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Levels as a transform is asked for them: clipped to 0 to 255, and rounded for uint8.

    Args:
        levels: Floats of any shape.
        dtype: uint8 or a floating one.

    Raises:
        UsageError: It is another.
    """
    clipped = levels.clamp(0, 255)
    return (clipped if is_exact(dtype) else clipped.round()).to(dtype)


class StainTransform(Protocol):
    """The fitted state for one slide: a pure function of the tiles, the same on any batch split."""

    def __call__(self, tiles: torch.Tensor, *, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Normalise a batch on the tensor's own device.

        Args:
            tiles: uint8 RGB (b, h, w, 3).
            dtype: Of the result. With uint8 levels are rounded. With a floating one they are the levels before
                rounding, clipped to 0 to 255: computed in float32, then cast. Rounded they are the uint8 result, but
                for values within 0.001 of the border between two levels, which may fall to either.

        Returns:
            RGB of the same shape.

        Raises:
            UsageError: The dtype is neither uint8 nor floating.
        """

    @property
    def state(self) -> Mapping[str, object]:
        """The fitted numbers as plain JSON values, for the file's record."""


@runtime_checkable
class FusedTransform(StainTransform, Protocol):
    """One that can write the network's input in the kernel that normalises the stain, on some devices."""

    def is_fused(self, tiles: torch.Tensor) -> bool:
        """Whether these tiles are on such a device."""

    def prepared(
        self, tiles: torch.Tensor, *, scale: tuple[float, ...], shift: tuple[float, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """Normalise a batch, round, and apply a factor and a summand to every channel.

        Args:
            tiles: uint8 RGB (b, h, w, 3), for which :meth:`is_fused` says yes.
            scale: Factors for R, G and B.
            shift: Added after them.
            dtype: Of the result, floating; computed in float32.

        Returns:
            Of the same shape, in that memory order.
        """


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


@runtime_checkable
class TargetedNormalizer(StainNormalizer, Protocol):
    """One whose estimates can be averaged and aimed at, so that it can have a target and a fallback."""

    @property
    def name(self) -> str:
        """Of the method, as in a spec."""

    @property
    def target(self) -> str:
        """A slide, an image, a saved state or ``cohort``, to be looked up; empty for the normaliser's own numbers."""

    @property
    def fallback(self) -> str:
        """``fail``, ``skip`` or ``cohort``: what becomes of a slide whose stain cannot be estimated."""

    def estimate(self, sample: torch.Tensor) -> Estimate:
        """The stain of a slide; see :meth:`StainNormalizer.fit`."""

    def transform(self, estimate: Estimate) -> StainTransform:
        """From a slide with this stain to the reference."""

    def towards(self, reference: Estimate) -> Self:
        """The same method with another reference and no target."""
