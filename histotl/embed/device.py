"""Where the forward pass runs, in which number format, and how the cores are shared out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from histotl.core.allocator import large_blocks_kept
from histotl.core.values import BackboneCard
from histotl.embed.config import EmbedConfig, Precision

log = logging.getLogger(__name__)

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of number formats, as in identities and options, and what torch calls them."""

CPU_SIZES = (8, 16, 32, 64)
GPU_SIZES = (32, 64, 128, 256, 512, 1024)
"""Batch sizes that are tried, ascending."""

_MAX_WORKERS = 8

_MAX_FORWARDS = 16
"""Beyond this many cores the memory of so many batches, and readers that keep up with them, are the limit."""

_TOGETHER, _LEAST_EACH = 64, 16
"""Tiles of 224 px in all forward passes of a CPU together; and in one of them, below which convolutions get slow."""

_SWITCHING_S = 0.5e-3
"""Seconds after which a thread that runs Python lets another one run."""


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


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """How forward passes use the cores.

    Args:
        count: Side by side.
        threads: Of torch, in each.
    """

    count: int = 1
    threads: int = 1


def choose_forwards(config: EmbedConfig, device: torch.device, readers: int, *, side_by_side: bool = True) -> Forwards:
    """Forward passes of a run, within the threads that torch has and the cores that this process may use.

    On a CPU one thread each, as many as there are cores: readers share these, as they take little of them beside a
    network. So features depend neither on the number of cores nor on their speed. Other runtimes and compiled networks
    have one set of buffers and threads of their own: one forward pass gets all cores. OpenMP threads that spin while
    they wait must not meet a reader on their core: it slows both tenfold, so the readers' cores are left out there.

    Args:
        config: Says what runs the network.
        device: Where it runs.
        readers: Threads that read meanwhile.
        side_by_side: Whether the caller has several threads compute.
    """
    most = max(1, min(torch.get_num_threads(), usable_cores()))
    beside = max(1, min(torch.get_num_threads(), usable_cores() - readers))
    if device.type == "cuda":
        return Forwards(threads=beside)
    if side_by_side and config.runtime == "torch" and not config.compile:
        return Forwards(count=min(most, _MAX_FORWARDS))
    sleeping = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    return Forwards(threads=most if sleeping else beside)


def largest_batch(config: EmbedConfig, device: torch.device, tile_px: int, forwards: int = 1) -> int:
    """Most tiles per forward pass: what was asked for, or the largest size that is worth a trial.

    Automatic batches shrink with the area of the tiles, from 1024 tiles of 224 px on a GPU; on a CPU from 64 over the
    number of forward passes side by side, so that memory does not grow with the cores, but not below 16.
    """
    if config.batch_size:
        return config.batch_size
    most = GPU_SIZES[-1] if device.type == "cuda" else max(_LEAST_EACH, _TOGETHER // forwards)
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

    A GPU is fed by all cores but one, at most eight. On a CPU forward passes are what takes the time: there is a reader
    for four of them.
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


@contextmanager
def compute_settings(forwards: Forwards) -> Iterator[None]:
    """Give torch its threads and keep fp32 honest while a run lasts; the old settings come back after it.

    The number holds for the calling thread and for all that begin meanwhile. TF32 rounds the inputs of fp32
    convolutions to 10 bits; a run that says fp32 does not. A network gives up Python's lock at every layer: it must not
    wait 5 ms, as is usual, to get it back from a planner.

    Args:
        forwards: As :func:`choose_forwards` says.
    """
    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(forwards.threads)
    torch.backends.cudnn.allow_tf32 = False
    switching_s = sys.getswitchinterval()
    sys.setswitchinterval(min(switching_s, _SWITCHING_S))
    try:
        with large_blocks_kept(in_threads=forwards.count > 1):
            yield
    finally:
        sys.setswitchinterval(switching_s)
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32
