"""What is known of the inputs before training: their scale, and vectors that need to be pooled only once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from histotl.learn.bags import Bags
from histotl.learn.network import Network, evaluating

STAT_ROWS = 1024
"""Rows in one block while means and deviations are summed."""

POOL_ROWS = 16384
"""Tiles in one pass while bags are pooled."""


def tile_scales(bags: Bags, members: npt.NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the tiles of several sets of bags, in one pass over the rows.

    Args:
        bags: B bags.
        members: bool (F, B): the bags of each set, at least one.

    Returns:
        float64 (F, D) means, and deviations with 1 where a feature is constant, on the CPU.
    """
    owner = np.repeat(np.arange(len(bags)), bags.sizes)
    used = np.flatnonzero(np.any(members, axis=0)[owner]).astype(np.int64)
    shape = (len(members), bags.source.dim)
    total, square = np.zeros(shape), np.zeros(shape)
    pivot: npt.NDArray[np.float64] | None = None
    for start in range(0, len(used), STAT_ROWS):
        places = used[start : start + STAT_ROWS]
        block = bags.source.read(bags.rows[places]).astype(np.float64)
        pivot = block.mean(axis=0) if pivot is None else pivot
        block -= pivot
        of_sets = members[:, owner[places]].astype(np.float64)
        total += of_sets @ block
        square += of_sets @ np.square(block, out=block)
    n = members.astype(np.int64) @ bags.sizes
    mean = total / n[:, None]
    std = np.sqrt(np.maximum(square / n[:, None] - mean**2, 0))
    return torch.from_numpy(mean + (0 if pivot is None else pivot)), torch.from_numpy(np.stack([*map(_varied, std)]))


def set_tile_scale(network: Network, mean: torch.Tensor, std: torch.Tensor) -> None:
    """What tiles are standardised by."""
    network.mean.copy_(mean)
    network.std.copy_(std)


def set_bag_scale(network: Network, vectors: torch.Tensor) -> None:
    """The same for vectors of bags, float (B, d), that were pooled once."""
    network.bag_mean.copy_(vectors.mean(dim=0))
    network.bag_std.copy_(torch.from_numpy(_varied(vectors.std(dim=0, correction=0).cpu().numpy())))


def pool_once(network: Network, bags: Bags) -> torch.Tensor:
    """Vectors of all bags, float (B, d), by an aggregator without parameters."""
    vectors, device = [], network.mean.device
    with evaluating(network):
        for chunk in bags.chunks(POOL_ROWS):
            packed = bags.gather(chunk)
            coords = None if packed.coords is None else packed.coords.to(device)
            vectors.append(network.pool(packed.x.to(device), packed.offsets, coords).bags.clone())
    return torch.cat(vectors).clone()


def _varied(std: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Deviations, 1 for a constant feature, which keeps its scale."""
    return np.where(std > 1e-6 * max(1e-12, float(std.max(initial=0.0))), std, 1.0)
