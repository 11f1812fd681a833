"""Allocator settings: what they promise is fewer pages fetched, and the old behaviour afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from histotl.core.allocator import _glibc, large_blocks_kept

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


_IN_A_THREAD = """
import resource, threading
import torch
from histotl.core.allocator import large_blocks_kept

def work():
    for _ in range(20):
        maps = [torch.zeros(12 * 2**20).add_(1) for _ in range(3)]  # 48 MiB each
        del maps
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

found = []
torch.set_num_threads(1)
with large_blocks_kept(in_threads=True):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(found[-1] - found[-11])
"""


@pytest.mark.skipif(_glibc() is None, reason="no glibc")
def test_threads_beside_the_main_one_use_their_blocks_again_too() -> None:
    done = subprocess.run([sys.executable, "-c", _IN_A_THREAD], capture_output=True, text=True, check=True)
    touched = 10 * 3 * 48 * 2**20 // resource.getpagesize()
    assert int(done.stdout) < touched / 10


def test_it_lasts_over_an_error() -> None:
    with pytest.raises(KeyError), large_blocks_kept():
        raise KeyError


@pytest.mark.skipif(_glibc() is None, reason="no glibc")
def test_the_end_of_an_inner_use_leaves_the_outer_one_as_it_is() -> None:
    pages = 4 * _COUNT // resource.getpagesize()
    with large_blocks_kept():
        with large_blocks_kept():
            for _ in range(10):
                faults()
        for _ in range(3):
            faults()
        kept = faults()
    assert kept < pages / 10
