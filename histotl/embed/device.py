"""Where the forward pass runs, in which number format, and how the cores are shared out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from histotl.backbones._memory import large_blocks_kept
from histotl.core.values import BackboneCard
from histotl.embed.config import EmbedConfig, Precision

log = logging.getLogger(__name__)

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of number formats, as in identities and options, and what torch calls them."""

CPU_SIZES = (8, 16, 32, 64)
GPU_SIZES = (32, 64, 128, 256, 512, 1024)
"""Batch sizes that are tried, ascending."""

_MAX_WORKERS = 8

_SWITCHING_S = 0.5e-3
"""Seconds after which a thread that runs Python lets another one run."""

_READ_S, _READING_SHARE = 0.4e-3, 0.05
"""Core seconds that reading takes for a tile, generously; and the share of the network's below which it is nothing."""


def choose_precision(asked: Precision, card: BackboneCard, device: torch.device) -> str:
    """Number format of the forward pass of one backbone: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` stays at fp32 on a CPU: without matrix units for bf16 its autocast is 7 to 16 times slower than fp32.
    The nodes of a cluster must agree, so a CPU that has such units gets bf16 only when it is asked for.
    A card that says ``fp32_only`` is obeyed whatever was asked; the files' identity says so.
    """
    if card.fp32_only:
        return "fp32"
    if asked != "auto":
        if device.type == "cpu" and asked != "fp32" and not cpu_has_units(asked):
            log.warning(
                "this CPU has no units for %s: expect it to be about ten times slower than --precision fp32", asked
            )
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def largest_batch(config: EmbedConfig, device: torch.device, tile_px: int) -> int:
    """Most tiles per forward pass: what was asked for, or the largest size that is worth a trial.

    Automatic batches shrink with the area of the tiles, from 64 tiles of 224 px on a CPU and 1024 on a GPU.
    """
    if config.batch_size:
        return config.batch_size
    most = GPU_SIZES[-1] if device.type == "cuda" else CPU_SIZES[-1]
    return max(1, min(most, most * 224 * 224 // (tile_px * tile_px)))


def fixed_batch(device: torch.device) -> int:
    """Tiles in a batch where the size cannot be found by trying, as a compiled program is made for one size."""
    return 256 if device.type == "cuda" else 32


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


def choose_planners(device: torch.device) -> int:
    """Threads that open slides and find their tissue, ahead of the readers."""
    return max(1, min(4, usable_cores() // (4 if device.type == "cuda" else 2)))


def cpu_has_units(precision: str) -> bool:
    """Whether this CPU multiplies matrices of ``bf16`` (AMX or AVX512-BF16) or ``fp16`` (AMX-FP16) itself."""
    bf16 = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    names = ("_is_amx_fp16_supported",) if precision == "fp16" else bf16
    probes = (getattr(torch.cpu, name, None) for name in names)
    return any(probe is not None and probe() for probe in probes)


def share_cores(seconds_a_tile: float, most: int) -> None:
    """Let the network have all cores when reading takes next to nothing beside it.

    A network that needs a hundred times the readers' time wastes a core that is kept free for them. Only where idle
    OpenMP threads sleep, though: spinning ones and a reader on the same core slow each other tenfold.

    Args:
        seconds_a_tile: Of the network, with the threads that it has.
        most: Threads that it may have.
    """
    sleeping = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if sleeping and seconds_a_tile * torch.get_num_threads() * _READING_SHARE > _READ_S:
        torch.set_num_threads(most)


@contextmanager
def compute_settings(workers: int) -> Iterator[int]:
    """Leave cores to the readers and keep fp32 honest while a run lasts; the old settings come back after it.

    torch and the readers must not compete for a core: OpenMP threads spin at barriers, and one busy neighbour slows a
    small network tenfold. TF32 rounds the inputs of fp32 convolutions to 10 bits; a run that says fp32 does not. The
    network gives up Python's lock at every layer: it must not wait 5 ms, as is usual, to get it back from a planner.

    Yields:
        Threads that the network may have at most, see :func:`share_cores`.
    """
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(max(1, min(threads, usable_cores() - workers)))
    torch.backends.cudnn.allow_tf32 = False
    switching_s = sys.getswitchinterval()
    sys.setswitchinterval(min(switching_s, _SWITCHING_S))
    try:
        with large_blocks_kept():
            yield min(threads, usable_cores())
    finally:
        sys.setswitchinterval(switching_s)
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
