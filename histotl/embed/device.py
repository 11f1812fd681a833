"""Where the forward pass runs, in which number format, and how the cores are shared out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from histotl.core.values import BackboneCard
from histotl.embed.config import EmbedConfig, Precision

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of number formats, as in identities and options, and what torch calls them."""

_GPU_TILES, _CPU_TILES = 256, 32
_MAX_WORKERS = 8


def choose_precision(asked: Precision, card: BackboneCard, device: torch.device) -> str:
    """Number format of the forward pass of one backbone: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` stays at fp32 on a CPU: without matrix units for bf16 its autocast is 7 to 16 times slower than fp32.
    A card that says ``fp32_only`` is obeyed whatever was asked; the files' identity says so.
    """
    if card.fp32_only:
        return "fp32"
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def choose_batch_size(config: EmbedConfig, device: torch.device, tile_px: int) -> int:
    """Tiles per forward pass; automatic batches shrink with the area of the tiles, from 256 of 224 px on a GPU."""
    if config.batch_size:
        return config.batch_size
    most = _GPU_TILES if device.type == "cuda" else _CPU_TILES
    return max(1, min(most, most * 224 * 224 // (tile_px * tile_px)))


def usable_cores() -> int:
    """Cores that this process may run on, which in a container or a batch job are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def choose_workers(config: EmbedConfig, device: torch.device) -> int:
    """Reader threads.

    A GPU is fed by all cores but one, at most eight. On a CPU the forward pass is what takes the time, so readers get
    a quarter of the cores and the network the rest.
    """
    if config.workers:
        return config.workers
    cores = usable_cores()
    return max(1, min(_MAX_WORKERS, cores - 1 if device.type == "cuda" else cores // 4))


@contextmanager
def compute_settings(workers: int) -> Iterator[None]:
    """Leave cores to the readers and keep fp32 honest while a run lasts; the old settings come back after it.

    torch and the readers must not compete for a core: OpenMP threads spin at barriers, and one busy neighbour slows a
    small network tenfold. TF32 rounds the inputs of fp32 convolutions to 10 bits; a run that says fp32 does not.
    """
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(max(1, min(threads, usable_cores() - workers)))
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
