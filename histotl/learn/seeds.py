"""Random streams of torch that leave the caller's own stream alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch from a seed within the block; the caller's own stream goes on undisturbed after it."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def own_seed(seed: int, *words: str) -> int:
    """A seed that depends on these words and on nothing else, so that what is beside them does not matter."""
    return crc32("/".join((str(seed), *words)).encode())
