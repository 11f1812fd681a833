"""Optical density: the space in which stains add up (Beer-Lambert).

Convention: ``OD = -ln((I + 1) / 256)`` for a level I of 0 to 255. White is exactly 0, black is 5.545, and
``I = 256 exp(-OD) - 1`` takes every level back to itself. (Macenko's published code has 240 in place of 256, under
which white has a negative density.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import NoTissueError
from histotl.image._planes import CLEAR, Planes, look_up

Array = npt.NDArray[np.float64]

IO = 256.0
"""Level + 1 of clear glass."""

MIN_PIXELS = 1000
"""Fewer stained pixels than this give no usable percentiles."""

CURE = "run with --stain none, or exclude the slide"

SAMPLE_PIXELS = 1_000_000
"""Most pixels that a fit looks at; percentiles and moments are settled long before."""


def density_of(levels: npt.ArrayLike) -> Array:
    """Optical density of levels, which may be fractions."""
    density: Array = -np.log((np.asarray(levels, np.float64) + 1) / IO)
    return density


def od_table() -> Array:
    """Optical density of the 256 levels, float64."""
    return density_of(np.arange(256))


def sample_pixels(sample: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Pixels (n, 3) of a sample of tiles, evenly thinned to at most :data:`SAMPLE_PIXELS`."""
    pixels = sample.reshape(-1, 3)
    # An odd step meets every column of a tile and every phase of its 8 x 8 JPEG blocks.
    step = -(-len(pixels) // SAMPLE_PIXELS) | 1
    thinned: npt.NDArray[np.uint8] = pixels[::step].cpu().numpy()
    return thinned


def stained_pixels(
    sample: torch.Tensor, white: npt.ArrayLike = CLEAR, *, beta: float, name: str
) -> npt.NDArray[np.uint8]:
    """Pixels (n, 3) whose mean density over the channels is at least ``beta``.

    The mean, not every single channel: pure eosin takes so little red light (density under 0.15 at usual strength)
    that the latter throws it away, and the eosin vector found is then off by 5° for eosin as Ruifrok measured it.

    Args:
        sample: uint8 RGB (n, h, w, 3).
        white: Levels of R, G and B (3,) that density is measured against.
        beta: Density, natural logarithm.
        name: Who asks, for the message.

    Raises:
        NoTissueError: There are fewer than :data:`MIN_PIXELS`.
    """
    pixels = sample_pixels(sample)
    stained: npt.NDArray[np.uint8] = pixels[od_table()[pixels].mean(axis=1) >= beta + density_of(white).mean()]
    if len(stained) < MIN_PIXELS:
        fact = f"{name}: {len(stained)} of {len(pixels)} sampled pixels are stained, at least {MIN_PIXELS} are needed"
        raise NoTissueError(fact, hint=CURE)
    return stained


def log_weights(matrix: Array, added: Array) -> npt.NDArray[np.float32]:
    """A matrix on optical densities, as one on logarithms that gives those of level + 1.

    Level + 1 is 256 exp(-density): as a fourth column of the matrix the factor 256 costs nothing.

    Args:
        matrix: (3, 3), or (n, 3, 3).
        added: Densities (1, 3), or (n, 3), that are added afterwards.

    Returns:
        float32 (n, 3, 4): factors of the three densities taken negative, and what is added.
    """
    last = (math.log(IO) - added)[..., None]
    count = max(len(last), len(matrix) if matrix.ndim == 3 else 1)
    both = [np.broadcast_to(matrix, (count, 3, 3)), np.broadcast_to(last, (count, 3, 1))]
    return np.concatenate(both, axis=2, dtype=np.float32)


@cache
def _table_on(device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return torch.from_numpy(od_table()).to(device=device, dtype=torch.float32)


def densities(planes: Planes) -> list[torch.Tensor]:
    """Optical density, float32, of three uint8 planes."""
    table = _table_on(planes[0].device)
    return [look_up(table, plane) for plane in planes]


def mix(density: Planes, weights: Sequence[float | torch.Tensor], offset: float | torch.Tensor = 0.0) -> torch.Tensor:
    """Level + 0.5 of one output channel from the three densities.

    Args:
        density: Three planes (k, n).
        weights: Three factors: numbers, or tensors (k, 1) that differ by tile.
        offset: Added density, likewise.
    """
    # Element-wise on purpose: a matrix product would run in half precision under autocast.
    total = density[0] * weights[0]
    total.add_(density[1] * weights[1]).add_(density[2] * weights[2])
    if isinstance(offset, torch.Tensor):
        return total.add_(offset).neg_().exp_().mul_(IO).sub_(0.5)
    return total.neg_().exp_().mul_(IO * math.exp(-offset)).sub_(0.5)  # a number costs nothing here
