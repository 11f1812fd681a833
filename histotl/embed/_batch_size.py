"""How many tiles go through the network at once: found by trying.

On a GPU larger batches are faster until it is full, then only take memory. On a CPU they are slower as soon as the
activations leave the cache: for small nets 16 tiles can be twice as fast as 128, and where the best lies differs from
network to network.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from histotl.embed._accelerator import Accelerator
from histotl.embed._models import Model
from histotl.embed.config import EmbedConfig
from histotl.embed.device import CPU_SIZES, GPU_SIZES, fixed_batch, largest_batch

log = logging.getLogger(__name__)

_GAIN = 1.03
"""A larger batch must be faster by this factor: below it only memory is spent."""

_MEMORY = 0.8
"""Share of a GPU's memory that the largest batch may take."""


class BatchTuner:
    """Finds the batch size of a CPU on the real batches of the run, so that no work is wasted.

    Begins with a size in the middle and climbs: the neighbours of the best size so far are tried on a few batches each,
    until both are known to be no faster.

    Args:
        sizes: Ascending.
        tiles: Tiles that a size is judged by, after its first batch.
        first: The size to begin with; the largest when it is not among them.
    """

    def __init__(self, sizes: Sequence[int], *, tiles: int = 64, first: int = 32) -> None:
        self._sizes, self._judged_by = list(sizes), tiles
        self.batch_size = first if first in self._sizes else self._sizes[-1]
        self._rates: dict[int, float] = {}
        self._seen, self._tiles, self._seconds = 0, 0, 0.0
        self._settled = len(self._sizes) == 1

    def observe(self, n_tiles: int, seconds: float) -> None:
        """Tell how long a batch took; changes ``batch_size`` when enough is known."""
        if self._settled or n_tiles != self.batch_size:
            return
        self._seen += 1
        if self._seen == 1:
            return  # the first batch of a size also pays for new memory
        self._tiles, self._seconds = self._tiles + n_tiles, self._seconds + seconds
        if self._tiles >= self._judged_by:
            self._rates[self.batch_size] = self._tiles / max(self._seconds, 1e-9)
            self._seen, self._tiles, self._seconds = 0, 0, 0.0
            self._climb()

    def _climb(self) -> None:
        best = max(self._rates, key=lambda size: self._rates[size])
        place = self._sizes.index(best)
        unknown = [size for size in self._sizes[max(0, place - 1) : place + 2] if size not in self._rates]
        self._settled = not unknown
        self.batch_size = unknown[0] if unknown else best
        if self._settled:
            log.debug("batches of %d tiles: %s", best, {size: round(rate) for size, rate in self._rates.items()})


def choose_batches(
    config: EmbedConfig, models: Sequence[Model], accelerator: Accelerator, tile_px: int
) -> tuple[int, int, BatchTuner | None]:
    """Batch size to begin with, the most that a batch may hold, and what changes it on the way.

    Args:
        config: Says a size, or 0 for the fastest.
        models: Run one after the other on the same tiles.
        accelerator: Where they are.
        tile_px: Side of a tile.
    """
    device = accelerator.device
    most = largest_batch(config, device, tile_px)
    if config.batch_size or config.compile or config.runtime != "torch":
        size = config.batch_size or min(most, fixed_batch(device))
        return size, size, None
    if device.type == "cuda":
        size = find_batch_size(models, accelerator, tile_px, [size for size in GPU_SIZES if size <= most])
        return size, size, None
    tuner = BatchTuner([size for size in CPU_SIZES if size <= most] or [most])
    return tuner.batch_size, most, tuner


def find_batch_size(models: Sequence[Model], accelerator: Accelerator, tile_px: int, sizes: Sequence[int]) -> int:
    """The smallest batch size that is as fast as any, within the memory of the device.

    Args:
        models: Run one after the other on the same tiles.
        accelerator: Where they are.
        tile_px: Side of a tile.
        sizes: To try, ascending.
    """
    best, best_rate = 1, 0.0
    for size in sizes:
        accelerator.forget_most_memory()
        try:
            rate = _rate(models, accelerator, size, tile_px)
        except torch.OutOfMemoryError:
            break
        if accelerator.most_memory() > _MEMORY * accelerator.total_memory() or rate < best_rate * _GAIN:
            break
        best, best_rate = size, rate
    accelerator.forget_most_memory()
    log.info("batches of %d tiles on %s: %.0f tiles/s", best, accelerator.device, best_rate)
    return best


def _rate(models: Sequence[Model], accelerator: Accelerator, size: int, tile_px: int, repeats: int = 3) -> float:
    """Tiles a second; models are asked without the halving of batches that do not fit."""
    tiles = torch.zeros(size, tile_px, tile_px, 3, dtype=torch.uint8, device=accelerator.device)
    for model in models:
        model.whole(tiles)  # warm: kernels are chosen and memory is taken
    accelerator.finish()
    began = time.perf_counter()
    for _ in range(repeats):
        for model in models:
            model.whole(tiles)
    accelerator.finish()
    return repeats * size / (time.perf_counter() - began)
