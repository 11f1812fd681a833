"""The mean colour of a slide's tissue, and how far the slides of a set lie apart in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from histotl.core.errors import NoTissueError
from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.evaluate.metrics import Floats, divide
from histotl.image._lab import lab_of_levels
from histotl.image._od import od_table, sample_pixels
from histotl.image._planes import Planes

LEAST_DENSITY = 0.15
"""Mean optical density (natural logarithm) of a stained pixel, as the normalisers have it."""

LEAST_SLIDES = 3
"""Fewer slides than this have no spread that is worth a number."""

SPREADS: Mapping[str, str] = MappingProxyType(
    {
        "delta_e": "Colour, ΔE",
        "lightness": "L*",
        "green_red": "a*",
        "blue_yellow": "b*",
        "density": "Optical density",
    }
)
"""Measures of spread and how they are shown."""


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Mean over the stained pixels of a slide's sample.

    Args:
        lab: Mean L*, a*, b* (D65).
        density: Mean optical density of R, G, B, natural logarithm.
    """

    lab: tuple[float, ...]
    density: tuple[float, ...]


def mean_colours(tiles: Mapping[str, torch.Tensor]) -> dict[str, Colour]:
    """Mean colour of tiles before and after normalisation, over the same pixels: those stained before.

    Args:
        tiles: Name -> uint8 RGB (n, h, w, 3); the tiles as they are have the empty name.

    Returns:
        Name -> colour.

    Raises:
        NoTissueError: Not one pixel is stained.
    """
    density = od_table()
    stained = density[sample_pixels(tiles[""])].mean(axis=1) >= LEAST_DENSITY
    if not stained.any():
        fact = f"none of {len(stained)} sampled pixels is stained"
        raise NoTissueError(fact, hint="look at the tiles; give another --tissue, or exclude the slide")
    return {name: _mean(sample_pixels(one)[stained]) for name, one in tiles.items()}


def spread(colours: Sequence[Colour], resamples: Resamples) -> dict[str, Floats]:
    """Spread between slides, for all draws of a bootstrap.

    Args:
        colours: Of n slides.
        resamples: Draws of these slides.

    Returns:
        Name in :data:`SPREADS` -> (1 + b,). ``delta_e`` is the root of the summed variances of L*, a* and b*: the root
        mean square distance of a slide's colour from the mean of all; ``density`` the standard deviation of the mean
        density over R, G and B; the others are standard deviations of one coordinate.
    """
    values = np.array([[*colour.lab, float(np.mean(colour.density))] for colour in colours])
    values -= values.mean(axis=0)  # against cancellation in the sums of squares
    sums = resamples.sums(np.concatenate([values, values**2, np.ones((len(values), 1))], axis=1))
    count, k = sums[:, -1:], values.shape[1]
    square = divide(sums[:, k : 2 * k], count) - divide(sums[:, :k], count) ** 2
    # Of n slides; a resample of a single slide has no spread at all.
    variance = np.maximum(square, 0) * divide(count, count - 1)
    found = {name: np.sqrt(variance[:, i]) for i, name in enumerate(("lightness", "green_red", "blue_yellow"))}
    return {"delta_e": np.sqrt(variance[:, :3].sum(axis=1)), **found, "density": np.sqrt(variance[:, 3])}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure before and after normalisation of the same slides, and its change, all over the same draws.

    Args:
        before: Without normalisation.
        after: With it.
        difference: After less before.
    """

    before: Estimate
    after: Estimate
    difference: Estimate

    @classmethod
    def of(cls, before: Floats, after: Floats) -> Change:
        """From the figures of all draws (1 + b,)."""
        return cls(before=estimate(before), after=estimate(after), difference=estimate(after - before))

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {name: getattr(self, name).to_dict() for name in ("before", "after", "difference")}


def _mean(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Colour:
    planes: Planes = torch.from_numpy(np.ascontiguousarray(pixels.T)).unbind(0)
    lab = tuple(float(plane.double().mean()) for plane in lab_of_levels(planes))
    return Colour(lab=lab, density=tuple(od_table()[pixels].mean(axis=0).tolist()))
