"""Focus by the Laplacian: how fine the structure is, whatever its contrast.

Energy of the Laplacian is the usual focus measure of microscopes (Pech-Pacheco et al., "Diatom autofocusing in
brightfield microscopy: a comparative study", ICPR 2000), but it mostly tells dark tissue from pale. Divided by the
energy of the gradient it is a mean squared spatial frequency, free of stain strength and of how much tissue there is:
an edge that was blurred by a standard deviation of s pixels has about 1/s².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.image._tile_view import TileView


@register("quality", "focus_laplacian")
@dataclass(frozen=True, kw_only=True)
class FocusLaplacian:
    """Sharpness: energy of the Laplacian over energy of the gradient; higher is sharper.

    Args:
        mpp: Pixel size in µm at which it is measured.
        noise: Standard deviation of a camera's noise in levels; its share is taken off, and NaN says that no structure
            stands out of it.
    """

    columns: ClassVar[tuple[str, ...]] = ("focus_laplacian",)

    mpp: float = 1.0
    noise: float = 1.5

    def __post_init__(self) -> None:
        if not (self.mpp > 0 and self.noise >= 0):
            fact = f"focus_laplacian: mpp is {self.mpp} and noise {self.noise}"
            raise UsageError(fact, hint="give a pixel size above 0 and a noise of 0 or more")

    def __call__(self, view: TileView) -> torch.Tensor:
        """Measure, see :class:`~histotl.image.quality.base.QualityMeasure`."""
        green = view.green(self.mpp)
        b, h, w = green.shape
        if h < 3 or w < 3:
            return green.new_full((b, 1), torch.nan)
        right, down = green[:, 1:-1, 1:] - green[:, 1:-1, :-1], green[:, 1:, 1:-1] - green[:, :-1, 1:-1]
        laplacian = right[:, :, 1:] - right[:, :, :-1]
        laplacian += down[:, 1:]
        laplacian -= down[:, :-1]
        # Independent noise adds 2 variances to a difference and 20 to the Laplacian. Averaging has made it smaller.
        variance = (self.noise / view.scale(self.mpp)) ** 2
        gradient = _mean_square(right) + _mean_square(down) - 4 * variance
        curvature = _mean_square(laplacian) - 20 * variance
        figure = curvature.clamp(min=0) / gradient
        return torch.where(gradient > 4 * variance, figure, torch.nan)[:, None]


def _mean_square(plane: torch.Tensor) -> torch.Tensor:
    return plane.square().mean((1, 2))
