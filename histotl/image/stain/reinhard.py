"""Reinhard colour transfer, fitted once a slide.

Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001: mean and standard deviation of each channel of a
perceptual colour space are moved to those of a reference. The space here is CIE L*a*b* (D65), as in most histology
tools, not the paper's lαβ. The statistics are of tissue only; the transfer is of all pixels, so glass takes a faint
tint: use ``macenko`` where glass must stay white.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from histotl.core.errors import StainError, UsageError
from histotl.core.registry import register
from histotl.image._lab import lab_of_levels, levels_of_lab
from histotl.image._od import CURE, stained_pixels
from histotl.image._planes import Planes, map_planes

Triple = tuple[float, float, float]


@register("stain", "reinhard")
@dataclass(frozen=True, kw_only=True)
class Reinhard:
    """Moves a slide's mean and spread of L*, a* and b* to reference ones (Reinhard 2001).

    Args:
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        mean: Reference mean of L*, a*, b* over tissue: the rounded average of four colorectal H&E
            fields of TCGA and NCT-CRC.
        std: Reference standard deviations; likewise.
    """

    beta: float = 0.15
    mean: Triple = (58.0, 29.0, -13.0)
    std: Triple = (14.0, 7.0, 5.0)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"reinhard: beta is {self.beta}", hint="give an optical density above 0, such as 0.15")
        if not min(self.std) > 0:
            raise UsageError(f"reinhard: std is {self.std}", hint="give three numbers above 0")

    @property
    def needs_fit(self) -> bool:
        """A sample of the slide's tissue is needed."""
        return True

    def fit(self, sample: torch.Tensor) -> LabTransform:
        """Measure the tissue in uint8 RGB (n, h, w, 3), tissue tiles of one slide.

        Raises:
            NoTissueError: Fewer than 1000 stained pixels.
            StainError: The tissue is of one flat colour.
        """
        stained = stained_pixels(sample, beta=self.beta, name="reinhard")
        planes = torch.from_numpy(np.ascontiguousarray(stained.T))
        lab = torch.stack(lab_of_levels(planes.unbind(0))).double()
        mean, std = lab.mean(1).tolist(), lab.std(1).tolist()
        if min(std) < 1e-3:
            raise StainError(f"reinhard: {len(stained)} stained pixels have one flat colour", hint=CURE)
        gain = tuple(t / s for t, s in zip(self.std, std, strict=True))
        shift = tuple(t - g * m for t, g, m in zip(self.mean, gain, mean, strict=True))
        state = {"mean": mean, "std": std, "pixels": len(stained)}
        return LabTransform(gain=gain, shift=shift, state=state)


@dataclass(frozen=True, kw_only=True)
class LabTransform:
    """A gain and a shift of each of L*, a* and b*.

    Args:
        gain: Factors.
        shift: Added after them.
        state: The fitted numbers that they came from.
    """

    gain: tuple[float, ...]
    shift: tuple[float, ...]
    state: Mapping[str, object]

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Apply to uint8 RGB (b, h, w, 3)."""
        return map_planes(tiles, self._planes)

    def _planes(self, planes: Planes, _rows: slice) -> Planes:
        lab = lab_of_levels(planes)
        return levels_of_lab([p * g + s for p, g, s in zip(lab, self.gain, self.shift, strict=True)])
