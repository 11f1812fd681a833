"""Colour as optical density: unmixing of haematoxylin and eosin, moments and quantiles. Used by ``scattering.py``."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLOUR_DIM = 3 + 3 + 3 + 2 + 1 + 2 + 2 * len(QUANTILES)

# R, G and B absorbed by the two stains: Ruifrok & Johnston 2001, table 1.
_HEMATOXYLIN = (0.65, 0.70, 0.29)
_EOSIN = (0.07, 0.99, 0.11)
# Of a blank tile the standardised channels must be zero, not amplified camera noise: 0.01 OD is three grey levels
# in the middle of the range.
_STD_FLOOR = 0.01
_SPAN, _BINS = 5.0, 1024  # histogram of a standardised channel, for its quantiles


def optical_density(rgb: torch.Tensor) -> torch.Tensor:
    """Optical density (b, 3, h, w) of RGB (b, 3, h, w) in 0..1: 0 for white, 2.4 for black."""
    return -torch.log10((rgb.to(torch.float32) * 255 + 1) / 256)


def unmix(density: torch.Tensor) -> torch.Tensor:
    """Haematoxylin and eosin densities (b, 2, h, w) of optical density (b, 3, h, w).

    Solves ``od = h * haematoxylin + e * eosin + r * residual`` with unit vectors, the residual normal to the others.
    """
    r, g, b = density.unbind(1)
    # Spelt out, because a matrix product may sum in another order for another batch size.
    return torch.stack([r * wr + g * wg + b * wb for wr, wg, wb in _unmixing()], dim=1)


@cache
def _unmixing() -> tuple[tuple[float, float, float], ...]:
    """Weights of R, G and B density in haematoxylin and in eosin: two columns of the inverse of the stain matrix."""
    stains = np.array([_HEMATOXYLIN, _EOSIN])
    stains = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    residual = np.cross(stains[0], stains[1])
    inverse = np.linalg.inv(np.vstack([stains, residual / np.linalg.norm(residual)]))
    haematoxylin, eosin, _ = ((float(r), float(g), float(b)) for r, g, b in inverse.T)
    return haematoxylin, eosin


def standardise(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bring every map (b, c, …) to mean 0 and standard deviation 1, a flat one to 0.

    Returns:
        The maps, their means (b, c) and their standard deviations (b, c), which are at least 0.01.
    """
    flat = maps.flatten(2)
    mean = flat.mean(2)
    centred = flat - mean[..., None]
    std = (centred.square().mean(2) + _STD_FLOOR**2).sqrt()
    return (centred / std[..., None]).view(maps.shape), mean, std


def describe_colour(density: torch.Tensor, stains: torch.Tensor) -> torch.Tensor:
    """Moments and quantiles of densities (b, 3, h, w) and stains (b, 2, h, w).

    Returns:
        (b, 24): means, log deviations and correlations (RG, RB, GB) of optical density; then of the two stains the log
        deviations, their correlation, skewness, and the quantiles 5, 25, 50, 75, 95 % in deviations from the mean.
    """
    od, od_mean, od_std = standardise(density)
    he, _, he_std = standardise(stains)
    r, g, b = od.flatten(2).unbind(1)
    h, e = he.flatten(2).unbind(1)
    correlations = torch.stack([(r * g).mean(1), (r * b).mean(1), (g * b).mean(1)], dim=1)
    together = (h * e).mean(1, keepdim=True)
    skewness = torch.stack([(x * x * x).mean(1) for x in (h, e)], dim=1)
    quantiles = histogram_quantiles(he.flatten(2)).flatten(1)
    return torch.cat([od_mean, od_std.log(), correlations, he_std.log(), together, skewness, quantiles], dim=1)


def histogram_quantiles(values: torch.Tensor) -> torch.Tensor:
    """Quantiles (b, c, 5) of standardised values (b, c, n), to 0.01.

    By histogram, because sorting would take as long as all the texture does.
    """
    scale = _BINS / (2 * _SPAN)
    bins = ((values + _SPAN) * scale).clamp_(0, _BINS - 1).to(torch.int64)
    counts = torch.zeros(*values.shape[:2], _BINS, dtype=torch.int64, device=values.device)
    # Whole numbers, because atomic sums of floats differ from run to run on a GPU.
    counts.scatter_add_(2, bins, torch.ones_like(bins))
    below = counts.cumsum(2)
    wanted = torch.tensor(QUANTILES, device=values.device) * values.shape[2]
    rank = wanted.ceil().clamp(min=1).to(torch.int64).expand(*values.shape[:2], -1).contiguous()
    at = torch.searchsorted(below, rank)
    inside = counts.gather(2, at)
    share = (wanted - (below.gather(2, at) - inside)) / inside
    return (at + share) / scale - _SPAN
