"""Oriented Morlet wavelets as small windows of the Fourier plane.

A wavelet of octave ``j`` and angle ``θ`` is, in angular frequency ``ω`` (radians per pixel),

    ψ̂(ω) = g(ω - ξ_j e_θ) - κ g(ω),   g(ω) = exp(-½ (|ω·e_θ|² + |ω·e_θ⊥|² / s²) / σ_j²)

with ``ξ_j = XI 2⁻ʲ``, ``σ_j = SIGMA 2⁻ʲ``, slant ``s`` and ``κ = g(ξ_j e_θ)``, so that ``ψ̂(0) = 0``. It is negligible
further than a few ``σ_j`` from its centre, so only that window of bins is kept. The inverse transform of a window is
the wavelet response on a grid that is coarser in proportion, times a phase: subsampling costs nothing and the modulus
is what it would be on the full grid (the periodisation of Bruna & Mallat 2013, section 3.3, with the window centred).

Windows have an even side without their unpaired edge bin, so they are symmetric about their centre; with the angles
``π l / L`` and an even ``L`` the bank maps onto itself under quarter turns and flips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

XI = 1.9
"""Centre of the finest wavelet, radians per pixel: a period of 3.3 px."""
SIGMA = 1.0
"""Radial bandwidth of the finest wavelet, radians per pixel."""
REACH_FINEST, REACH = 2.2, 3.3
"""Half width of a window in bandwidths. 2.2 cuts off 0.2 % of the energy; the coarser octaves, which cost little, get
finer grids than they need, because the modulus of a response reaches further than the response."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Octave:
    """The wavelets of one octave on the Fourier grid of one image size.

    Args:
        centres: (ky, kx) of each wavelet's window, in bins.
        reach: (y, x): no window has bins further than this from zero.
        gain: float32 (orientations, rows, cols): the wavelets; index (rows/2, cols/2) is the centre's bin.
    """

    centres: tuple[tuple[int, int], ...]
    reach: tuple[int, int]
    gain: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a window, which are those of the response's grid."""
        return self.gain.shape[1], self.gain.shape[2]


def smooth_even(least: float, most: int) -> int:
    """Smallest even number from ``least`` to ``most`` whose prime factors are at most 7 (quick to transform).

    Never below 4; the largest even number up to ``most`` when there is none.
    """
    side = max(4, 2 * math.ceil(least / 2))
    while side <= most and not _is_smooth(side):
        side += 2
    return min(side, most - most % 2)


def octave(j: int, height: int, width: int, orientations: int) -> Octave:
    """Build the wavelets of octave ``j`` (0 is the finest) for images of a size in pixels."""
    xi, sigma = XI / 2**j, SIGMA / 2**j
    per_bin = np.array([2 * math.pi / height, 2 * math.pi / width])
    span = 2 * sigma * (REACH_FINEST if j == 0 else REACH)
    rows, cols = (smooth_even(span / p, n) for p, n in zip(per_bin, (height, width), strict=True))
    centres, gains = [], []
    for l in range(orientations):  # noqa: E741 - the letter of the literature
        theta = math.pi * l / orientations
        # np.rint rounds halves to even, so opposite centres stay opposite.
        cy, cx = (int(np.rint(c)) for c in np.array([math.sin(theta), math.cos(theta)]) * xi / per_bin)
        wy = (cy + np.arange(-rows // 2, rows // 2))[:, None] * per_bin[0]
        wx = (cx + np.arange(-cols // 2, cols // 2))[None, :] * per_bin[1]
        gain = morlet(wy, wx, theta=theta, xi=xi, sigma=sigma, slant=4 / orientations)
        gain[0, :] = 0
        gain[:, 0] = 0
        centres.append((cy, cx))
        gains.append(gain)
    reach = (max(abs(c[0]) for c in centres) + rows // 2, max(abs(c[1]) for c in centres) + cols // 2)
    return Octave(centres=tuple(centres), reach=reach, gain=torch.from_numpy(np.stack(gains)).to(torch.float32))


def morlet(
    wy: FloatArray, wx: FloatArray, *, theta: float, xi: float = XI, sigma: float = SIGMA, slant: float = 2 / 3
) -> FloatArray:
    """Fourier transform of a Morlet wavelet.

    Args:
        wy: Angular frequency along rows, radians per pixel.
        wx: The same along columns; the two are broadcast together.
        theta: Direction of oscillation, radians from x towards y.
        xi: Angular frequency of oscillation.
        sigma: Bandwidth along ``theta``.
        slant: Bandwidth across ``theta`` over that along it; below 1 the wavelet is longer than wide.
    """
    c, s = math.cos(theta), math.sin(theta)
    along, across = wx * c + wy * s, (wy * c - wx * s) / slant
    wave = np.exp(-((along - xi) ** 2) / (2 * sigma**2))
    offset = math.exp(-(xi**2) / (2 * sigma**2)) * np.exp(-(along**2) / (2 * sigma**2))
    gain: FloatArray = np.exp(-(across**2) / (2 * sigma**2)) * (wave - offset)
    return gain


def envelope_weights(first: Octave, coarser: list[Octave]) -> torch.Tensor:
    """``|ψ̂|²`` of coarser octaves on the half spectrum of the grid of ``first``'s response.

    The energy that a wavelet leaves of a real image is, by Parseval, a weighted sum of the image's power spectrum; the
    power spectrum of a real image is even, so the half that ``rfft2`` gives is enough once opposite weights are added.

    Returns:
        float32 (rows * (cols / 2 + 1), octaves * orientations), octaves outer.
    """
    rows, cols = first.shape
    columns = []
    for other in coarser:
        my, mx = other.shape
        for (cy, cx), gain in zip(other.centres, other.gain.numpy().astype(np.float64), strict=True):
            full = np.zeros((rows, cols))
            ky, kx = cy + np.arange(-my // 2, my // 2), cx + np.arange(-mx // 2, mx // 2)
            np.add.at(full, (ky[:, None] % rows, kx[None, :] % cols), gain**2)
            mirrored = np.roll(full[::-1, ::-1], 1, axis=(0, 1))
            half = (full + mirrored)[:, : cols // 2 + 1]
            # The first and the last column hold both bins of every pair already.
            half[:, [0, -1]] /= 2
            columns.append(half.ravel())
    return torch.from_numpy(np.stack(columns, axis=1)).to(torch.float32)


def _is_smooth(number: int) -> bool:
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number == 1
