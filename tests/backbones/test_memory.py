"""Allocator settings: what they promise is fewer pages fetched, and the old behaviour afterwards."""

from __future__ import annotations

import resource

import pytest
import torch

from histotl.backbones._memory import _glibc, large_blocks_kept

_COUNT = 24 * 2**20  # float32: 96 MiB, above everything that glibc keeps by itself


def faults() -> int:
    """Pages that three large tensors, one after the other, cost the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.zeros(_COUNT).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(_glibc() is None, reason="no glibc")
def test_freed_blocks_are_used_again() -> None:
    pages = 4 * _COUNT // resource.getpagesize()
    with large_blocks_kept():
        # Aligning leaves small remainders, and blocks grow together again only when the list of those is full.
        for _ in range(10):
            faults()
        kept = faults()
    after = faults()
    assert kept < pages / 10
    # Huge pages, where the system has them on, make fewer faults of the same memory.
    assert after > 5 * max(1, kept)


def test_it_lasts_over_an_error() -> None:
    with pytest.raises(KeyError), large_blocks_kept():
        raise KeyError
