"""Which tiles and which bags take part in a step; nothing here reads a feature."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]
CPU = torch.device("cpu")

KEY_BITS = 32
"""Bits of the random key of a tile: of ten thousand tiles two have the same key once in a hundred times, and then only
the order of these two is not random."""


def tiles_of(offsets: Indices, bags: Indices) -> tuple[Indices, Indices]:
    """The tiles of some bags.

    Args:
        offsets: int64 (B + 1,) of all bags.
        bags: int64 (b,): which, in this order.

    Returns:
        int64 (N,) places of their tiles among those of all bags, bag after bag; int64 (b + 1,) offsets of these bags.
    """
    starts = offsets[bags]
    sizes = offsets[bags + 1] - starts
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.arange(ends[-1], dtype=np.int64) + np.repeat(starts - ends[:-1], sizes), ends


def thin(
    places: Indices, offsets: Indices, most: int, rng: np.random.Generator, device: torch.device = CPU
) -> tuple[Indices, Indices]:
    """At most so many tiles of each bag, drawn without replacement, in the order in which they were.

    Every tile gets a random key; one sort by (bag, key) over the tiles of all bags brings those that stay in each bag
    to the front of its own.

    Args:
        places: int64 (N,), bag after bag.
        offsets: int64 (b + 1,).
        most: Of one bag.
        rng: Of the keys, which are the same for every device.
        device: Where the sort is done.
    """
    sizes = np.diff(offsets)
    if not len(sizes) or sizes.max() <= most:
        return places, offsets
    n, low = len(places), len(places).bit_length()
    owner = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    bits = min(KEY_BITS, 63 - low - len(sizes).bit_length())
    keys = rng.integers(0, 1 << bits, size=n, dtype=np.int64)
    # Bag, key and number in one number: sorting numbers is several times faster than sorting places by them.
    packed = ((owner << bits | keys) << low) | np.arange(n, dtype=np.int64)
    kept = np.minimum(sizes, most)
    ends = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    first = np.arange(ends[-1], dtype=np.int64) + np.repeat(offsets[:-1] - ends[:-1], kept)
    if device.type == "cpu":
        chosen = np.sort(np.sort(packed)[first] & ((1 << low) - 1))
    else:
        ordered = torch.from_numpy(packed).to(device).sort().values[torch.from_numpy(first).to(device)]
        chosen = np.asarray((ordered & ((1 << low) - 1)).sort().values.cpu().numpy())
    return places[chosen], ends


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Endless batches of ``size`` out of ``n`` without replacement; what does not fill one comes in another pass."""
    while True:
        order = rng.permutation(n).astype(np.int64)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def balanced_batches(sizes: Indices, budget: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Endless batches with nearly equal numbers of tiles; every bag comes once in each pass.

    The bags of a pass come in random order, and each goes to the batch that has the fewest tiles so far. No two
    batches of a pass differ by more than the largest bag, and none has more tiles than the budget (or one bag).

    Args:
        sizes: int64 (B,) tiles that each bag gives.
        budget: Most tiles of a batch.
        rng: Of the order.
    """
    while True:
        yield from fill(sizes, budget, rng.permutation(len(sizes)).astype(np.int64))


def fill(sizes: Indices, budget: int, order: Indices) -> list[Indices]:
    """One pass of :func:`balanced_batches` over bags that come in a given order."""
    budget = max(budget, int(sizes.max()))
    count = max(1, -(-int(sizes.sum()) // budget))
    while True:
        # Ties go to the batch of the lowest number, so the first bags go to one batch each.
        loads = [(0, number) for number in range(count)]
        bags: list[list[int]] = [[] for _ in range(count)]
        for bag, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
            load, number = loads[0]
            if load + size > budget:
                break
            heapq.heapreplace(loads, (load + size, number))
            bags[number].append(bag)
        else:
            return [np.array(some, dtype=np.int64) for some in bags if some]
        count += 1
