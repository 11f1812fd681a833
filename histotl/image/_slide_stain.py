"""What all stain normalisers that are fitted once a slide have in common: white, target, fallback, order of the steps.

A slide's stain is *estimated* from a sample of its tissue; the estimate becomes a *transform* to the reference. The
reference is the method's own numbers, or those of a target, which :mod:`histotl.embed` looks up before a run and puts
in their place: what is applied, and what the identity of features says, are numbers and never the name of a file.

Both have a white: the colour of their glass, or level 255 of each channel, as in the published methods. Density, light
and levels are taken against the slide's white before, and the reference's after.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import UsageError
from histotl.image._glass import find_glass
from histotl.image._ink import under_ink
from histotl.image._od import Array, stained_pixels
from histotl.image._planes import CLEAR, Triple
from histotl.image.estimate import Estimate, Numbers
from histotl.image.stain.base import StainTransform

_FALLBACKS = re.compile(r"fail|skip|cohort(:[0-9a-f]{8,})?")

White = Literal["slide", 255]


@dataclass(frozen=True, kw_only=True)
class SlideStain(ABC):
    """A method that estimates a slide's stain and moves it to a reference; arguments are explained where it is used."""

    version: ClassVar[int] = 2

    beta: float = 0.15
    white: White = "slide"
    target: str = ""
    fallback: str = "fail"
    glass: Triple = CLEAR

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"{self.name}: beta is {self.beta}", hint="give an optical density above 0, such as 0.15")
        if self.white not in ("slide", 255):
            raise UsageError(f"{self.name}: white is {self.white!r}", hint="give 'slide' or 255")
        if not _FALLBACKS.fullmatch(self.fallback):
            raise UsageError(f"{self.name}: fallback is {self.fallback!r}", hint="give 'fail', 'skip' or 'cohort'")
        if len(self.glass) != 3 or not 1 <= min(self.glass) <= max(self.glass) <= 255:
            raise UsageError(f"{self.name}: glass is {self.glass}", hint="give three levels of 1 to 255")

    @property
    def needs_fit(self) -> bool:
        """A sample of the slide's tissue is needed."""
        return True

    @property
    def name(self) -> str:
        """Of the method, as in a spec."""
        return type(self).__name__.lower()

    def fit(self, sample: torch.Tensor) -> StainTransform:
        """Estimate the stain of uint8 RGB (n, h, w, 3), tissue tiles of one slide.

        Raises:
            NoTissueError: Fewer than 1000 stained pixels.
            StainError: The stain cannot be told from them.
            UsageError: The target has not been looked up.
        """
        if self.target:
            cure = "histotl.embed.stain_target.look_up() gives the normaliser with the target's numbers"
            raise UsageError(f"{self.name}: target {self.target!r} has not been looked up", hint=cure)
        return self.transform(self.estimate(sample))

    def estimate(self, sample: torch.Tensor) -> Estimate:
        """The stain of a slide, from uint8 RGB (n, h, w, 3); raises what :meth:`fit` does."""
        # A pen's stroke would be taken for a stain: it is as dark, and purer in colour. As white it is left out.
        without_ink = sample.masked_fill(under_ink(sample)[..., None], 255)
        white, unknown = find_glass(without_ink) if self.white == "slide" else (np.array(CLEAR), "")
        stained = stained_pixels(without_ink, white, beta=self.beta, name=self.name)
        numbers = {"white": white, **self.measure(stained, white)}
        return Estimate(method=self.name, numbers=numbers, pixels=len(stained), white_unknown=unknown)

    @abstractmethod
    def measure(self, stained: npt.NDArray[np.uint8], white: Array) -> Numbers:
        """The numbers of the estimate.

        Args:
            stained: Stained pixels (n, 3).
            white: Levels of R, G and B that they are seen against (3,).

        Raises:
            StainError: The stain cannot be told from them.
        """

    @abstractmethod
    def transform(self, estimate: Estimate) -> StainTransform:
        """From a slide with this stain to the reference."""

    @abstractmethod
    def towards(self, reference: Estimate) -> Self:
        """The same method with another reference and no target."""

    def glass_of(self, reference: Estimate) -> Triple:
        """The white to go to with a reference: always 255 for a method that takes 255 for the slide's."""
        if self.white == 255:
            return CLEAR
        r, g, b = rounded(reference.white)
        return r, g, b


def rounded(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Numbers as they stand in a spec: six digits are far beyond what an estimate is good for."""
    return tuple(round(float(value), 6) for value in values)
