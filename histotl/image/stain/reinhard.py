"""Reinhard colour transfer, fitted once a slide.

Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001: mean and standard deviation of each channel of a
perceptual colour space are moved to those of a reference. The space here is CIE L*a*b* (D65), as in most histology
tools, not the paper's lαβ. The statistics are of tissue only; the transfer is of all pixels, so glass takes a faint
tint: use ``macenko`` where glass must stay white. White, whose L* is 100, is the slide's own glass where it is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import StainError, UsageError
from histotl.core.registry import register
from histotl.image._lab import lab_of_levels
from histotl.image._od import CURE, Array
from histotl.image._planes import Triple
from histotl.image._slide_stain import SlideStain, rounded
from histotl.image._transforms import LabTransform
from histotl.image.estimate import Estimate, Numbers


@register("stain", "reinhard")
@dataclass(frozen=True, kw_only=True)
class Reinhard(SlideStain):
    """Moves a slide's mean and spread of L*, a* and b* to reference ones (Reinhard 2001).

    Args:
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        white: What density is measured against: the colour of the ``slide``'s own glass, where its tiles show enough of
            it (where they do not, the file says why, and it is 255), or 255 in each channel, as published.
        target: Where the reference comes from, if not from the numbers below: a slide, an image, a saved state
            (JSON), or ``cohort`` for the median of the run's slides.
        fallback: What becomes of a slide whose stain cannot be told: ``fail`` it, ``skip`` its normalisation, or
            take the ``cohort``'s stain for its own.
        mean: Reference mean of L*, a*, b* over tissue: the rounded average of four colorectal H&E
            fields of TCGA and NCT-CRC.
        std: Reference standard deviations; likewise.
        glass: Reference colour of glass as R, G, B levels.
    """

    mean: Triple = (58.0, 29.0, -13.0)
    std: Triple = (14.0, 7.0, 5.0)

    def __post_init__(self) -> None:
        if not min(self.std) > 0:
            raise UsageError(f"reinhard: std is {self.std}", hint="give three numbers above 0")
        super().__post_init__()

    def measure(self, stained: npt.NDArray[np.uint8], white: Array) -> Numbers:
        """Mean and standard deviation of L*, a* and b*; see :meth:`SlideStain.measure`.

        Raises:
            StainError: The tissue is of one flat colour.
        """
        planes = torch.from_numpy(np.ascontiguousarray(stained.T))
        lab = torch.stack(lab_of_levels(planes.unbind(0), _triple(white))).double()
        mean, std = lab.mean(1).numpy(), lab.std(1).numpy()
        if std.min() < 1e-3:
            raise StainError(f"reinhard: {len(stained)} stained pixels have one flat colour", hint=CURE)
        return {"mean": mean, "std": std}

    def transform(self, estimate: Estimate) -> LabTransform:
        """A gain and a shift of each channel; see :meth:`SlideStain.transform`."""
        gain = np.array(self.std) / estimate.numbers["std"]
        shift = np.array(self.mean) - gain * estimate.numbers["mean"]
        return LabTransform(
            gain=tuple(gain.tolist()),
            shift=tuple(shift.tolist()),
            state=estimate.state,
            white=_triple(estimate.white),
            glass=self.glass,
        )

    def towards(self, reference: Estimate) -> Self:
        """See :meth:`SlideStain.towards`."""
        mean, std = (_triple(np.array(rounded(reference.numbers[name]))) for name in ("mean", "std"))
        return replace(self, mean=mean, std=std, glass=self.glass_of(reference), target="")


def _triple(values: Array) -> Triple:
    r, g, b = values.tolist()
    return r, g, b
