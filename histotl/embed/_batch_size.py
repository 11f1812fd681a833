"""How many tiles go through the network at once: found by trying.

On a GPU larger batches are faster until it is full, then only take memory. On a CPU they are slower as soon as the
activations leave the cache: for small nets 16 tiles can be twice as fast as 128, and where the best lies differs from
network to network.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

import torch

from histotl.embed._accelerator import Accelerator
from histotl.embed._models import Model
from histotl.embed.config import EmbedConfig
from histotl.embed.device import CPU_SIZES, GPU_SIZES, fixed_batch, largest_batch

log = logging.getLogger(__name__)

_GAIN = 1.03
"""A larger batch must be faster by this factor: below it only memory is spent."""

_FIRST, _FIRST_BESIDE = 32, 16
"""Sizes that a CPU begins with, alone and side by side: at the end of a run some threads have no batch any more."""

_MEMORY = 0.8
"""Share of a GPU's memory that the largest batch may take."""


class BatchTuner:
    """Finds the batch size of a CPU on the real batches of the run, so that no work is wasted.

    Begins with a size in the middle. Its neighbours are tried on some batches each; one that is faster than the batches
    just before and just after its own takes its place, and has neighbours of its own. Both, and the median batch of
    each: a machine's speed changes from minute to minute, the planning of a slide slows the batches beside it, and a
    wrong choice would last. A trial of a size that does not suit costs as much as up to a hundred tiles, so there is a
    long pause before each: short runs keep the size that they begin with. So does a network that has waited for tiles
    longer than it has worked: no size would make the run faster, and a larger one takes memory.

    Args:
        sizes: Ascending.
        tiles: Tiles that a size is judged by, after its first batch.
        pause: Tiles before a trial.
        first: The size to begin with; the largest when it is not among them.
        forwards: Side by side: each pays for the first batch of a size.
        waited: Seconds that the network has waited for tiles until now, summed over its threads.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        tiles: int = 128,
        pause: int = 1536,
        first: int = 32,
        forwards: int = 1,
        waited: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._sizes, self._judged_by, self._pause, self._forwards = list(sizes), tiles, pause, forwards
        self._waited = waited
        self._best = first if first in self._sizes else self._sizes[-1]
        self._before, self._trial, self._tried = 0.0, 0.0, {self._best}
        self._trying = 0
        self._switch(self._best)

    def observe(self, n_tiles: int, seconds: float) -> None:
        """Tell how long a batch took; changes ``batch_size`` when enough is known."""
        self._worked_s += seconds
        if n_tiles != self.batch_size:
            return  # the last of a run, or begun before the size was changed
        self._seconds.append(seconds)
        self._batches += 1
        if self._trying:
            if self._batches >= self._needed + self._forwards:  # the first of a size also pays for new memory
                self._go_on_trying()
        elif self._batches * n_tiles >= self._pause and (untried := self._untried()) and not self._starves():
            self._before, self._trying = self._rate(), untried
            self._tried.add(untried)
            self._switch(untried)

    def _go_on_trying(self) -> None:
        """From the size on trial back to the best one, and from there to the verdict."""
        if self.batch_size != self._best:
            self._trial = self._rate()
            self._switch(self._best)
            return
        trying, before, after = self._trying, self._before, self._rate()
        log.debug("%d: %.0f tiles/s, then %d: %.0f, then %.0f", self._best, before, trying, self._trial, after)
        if self._trial > max(before, after):
            self._best = trying
        self._trying = 0
        self._switch(self._best)

    def _untried(self) -> int | None:
        place = self._sizes.index(self._best)
        neighbours = self._sizes[max(0, place - 1) : place + 2]
        return next((size for size in neighbours if size not in self._tried), None)

    def _starves(self) -> bool:
        return self._waited() - self._waited_s > self._worked_s

    def _switch(self, size: int) -> None:
        self.batch_size, self._batches = size, 0
        self._worked_s, self._waited_s = 0.0, self._waited()
        self._needed = -(-self._judged_by // size)
        self._seconds = deque[float](maxlen=self._needed)

    def _rate(self) -> float:
        """Tiles a second in the middle one of the last batches."""
        return self.batch_size / max(median(self._seconds), 1e-9)


def choose_batches(
    config: EmbedConfig,
    models: Sequence[Model],
    accelerator: Accelerator,
    tile_px: int,
    forwards: int = 1,
    waited: Callable[[], float] = lambda: 0.0,
) -> tuple[int, int, BatchTuner | None]:
    """Batch size to begin with, the most that a batch may hold, and what changes it on the way.

    Args:
        config: Says a size, or 0 for the fastest.
        models: Run one after the other on the same tiles.
        accelerator: Where they are.
        tile_px: Side of a tile.
        forwards: Forward passes side by side.
        waited: Seconds that they have waited for tiles until now, summed over them.
    """
    device = accelerator.device
    most = largest_batch(config, device, tile_px, forwards)
    if config.batch_size or config.compile or config.runtime != "torch":
        size = config.batch_size or min(most, fixed_batch(device))
        return size, size, None
    if device.type == "cuda":
        size = find_batch_size(models, accelerator, tile_px, [size for size in GPU_SIZES if size <= most])
        return size, size, None
    first = _FIRST if forwards == 1 else _FIRST_BESIDE
    sizes = [size for size in CPU_SIZES if size <= most] or [most]
    tuner = BatchTuner(sizes, first=first, forwards=forwards, waited=waited)
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
