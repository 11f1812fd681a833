"""The next step's rows are read while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

B = TypeVar("B")
D = TypeVar("D")


def read_ahead(batches: Iterator[B], read: Callable[[B], D]) -> Iterator[tuple[B, D]]:
    """Each batch with what is read for it.

    One thread takes every batch and reads it, one batch ahead, so random numbers that both draw from come in the same
    order as without it.

    Args:
        batches: Endless.
        read: Called with every batch.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="histotl-rows") as pool:

        def following() -> tuple[B, D]:
            batch = next(batches)
            return batch, read(batch)

        waiting = pool.submit(following)
        while True:
            found = waiting.result()
            waiting = pool.submit(following)
            yield found
