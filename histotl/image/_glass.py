"""The colour of the slide's glass, which is the light that optical density is measured against.

Beer and Lambert divide by the light that came through nothing. Where lamp, filter and camera leave bare glass below
level 255, a density taken against 255 holds a part that is no stain, and a normaliser scales it with the stains: two
laboratories can then be told apart by their glass. So it is looked for among the tissue tiles of the slide, on their
rims and in their lumina, in small squares that are all of: flat, as only the camera's noise is on glass; bright; of
hardly any colour; and alike, which mucus and pale stroma are not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from histotl.image._od import Array, density_of
from histotl.image._planes import CLEAR

_SIDE = 8
"""Pixels of a square's side; 4 µm at half a µm a pixel."""

_FLAT = 24
"""Most levels between the darkest and the brightest pixel of a square of glass, in any channel: noise and JPEG."""

LEAST_LEVEL = 200.0
"""Glass is at least as bright in each channel."""

_MOST_TINT = 0.15
"""Most by which the densities of its channels differ: lamps differ by less, and pale eosin by more."""

_ALIKE = 0.03
"""Density by which squares of one slide's glass differ, some 7 levels."""

_LEAST_SHARE, _LEAST_SQUARES = 0.004, 24
"""Of all squares that are glass, for it to be taken."""


def find_glass(sample: torch.Tensor) -> tuple[Array, str]:
    """Levels of bare glass in R, G and B.

    Args:
        sample: uint8 RGB (n, h, w, 3); what is exactly white was never scanned, or is masked.

    Returns:
        The levels (3,), and empty words; or 255 for each, and in words why it is not known.
    """
    means, spreads, is_blank = _squares(sample.cpu().numpy())
    bright = (means >= LEAST_LEVEL).all(axis=1) & (spreads <= _FLAT) & ~is_blank
    levels, needed = means[bright], max(_LEAST_SQUARES, round(_LEAST_SHARE * len(means)))
    if len(levels) < needed:
        fact = f"{len(levels)} of {len(means)} squares of {_SIDE} px are flat and bright, {needed} are needed"
        return np.array(CLEAR), fact
    density = density_of(levels).mean(axis=1)
    # A few may shine: bubbles bend light, and dust gathers it.
    lightest = float(np.partition(density, needed // 4)[needed // 4])
    own = (density >= lightest) & (density < lightest + _ALIKE)
    darker = (density >= lightest + _ALIKE) & (density < lightest + 2 * _ALIKE)
    if own.sum() < max(needed, darker.sum()):
        seen = f"{own.sum()}, then {darker.sum()}"
        return np.array(CLEAR), f"flat and bright squares grow darker bit by bit ({seen}), as pale tissue does"
    found: Array = np.median(levels[own], axis=0)
    if np.ptp(density_of(found)) > _MOST_TINT:
        seen = ", ".join(f"{level:.0f}" for level in found)
        return np.array(CLEAR), f"what is flat and bright has the colour ({seen}), as pale tissue has"
    return found, ""


def _squares(sample: npt.NDArray[np.uint8]) -> tuple[Array, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Of each square: mean level in R, G and B (m, 3), largest range of levels (m,), whether all are 255 (m,)."""
    n, h, w, _ = sample.shape
    rows, cols = h // _SIDE, w // _SIDE
    cut = sample[:, : rows * _SIDE, : cols * _SIDE].reshape(n, rows, _SIDE, cols * _SIDE * 3)
    # Whole rows first: they are long contiguous vectors.
    total = cut.sum(axis=2, dtype=np.uint16).reshape(-1, _SIDE, 3).sum(axis=1, dtype=np.float64)
    low, high = (of(axis=2).reshape(-1, _SIDE, 3) for of in (cut.min, cut.max))
    lowest, highest = low.min(axis=1), high.max(axis=1)
    return total / _SIDE**2, (highest - lowest).max(axis=1), (lowest == 255).all(axis=1)
