"""Worker threads that prepare slides and read their tiles before the model asks for them.

Threads, because decoding releases the GIL: nothing is pickled and a tile is written once, into the batch that goes to
the device. The pool lives as long as the run, so slide n+1 is opened, planned and read while slide n is in the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from histotl.embed._interrupt import unbroken

PART_TILES = 16
"""Tiles in one unit of work: enough that handing it over costs nothing, few enough that all workers share a batch."""


class Prepared(Protocol):
    """A slide that is ready to be read."""

    @property
    def n_tiles(self) -> int:
        """Tiles to read; 0 when there is nothing to do."""

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of every tile."""

    def read(self, rows: slice) -> npt.NDArray[np.uint8]:
        """Tiles of some rows of the grid, uint8 RGB (n, h, w, 3). Called from several threads at once."""

    def close(self) -> None:
        """Give back what is held (handles, locks); calling twice does no harm."""


Item = TypeVar("Item")
P = TypeVar("P", bound=Prepared)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tiles ``start`` to ``stop`` of a slide; full once every part has been read."""

    start: int
    stop: int
    tiles: torch.Tensor
    parts: tuple[Future[None], ...]

    def __len__(self) -> int:
        return self.stop - self.start

    def wait(self) -> torch.Tensor:
        """uint8 (stop - start, h, w, 3) on the CPU; raises what reading raised."""
        for part in self.parts:
            part.result()
        return self.tiles


class Turn(Generic[Item, P]):
    """One slide's turn: what is read for it, ahead of time and then while it is being embedded."""

    def __init__(self, item: Item, future: Future[P], ahead: ReadAhead[Item, P]) -> None:
        self.item = item
        self._future, self._ahead = future, ahead
        self._submitted: deque[Batch] = deque()
        self._next = 0

    def prepared(self) -> P:
        """Wait until the slide is prepared; raises what preparing raised."""
        return self._future.result()

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
        """Rows and tiles of every batch, in the order of the grid."""
        self.prepared()
        while True:
            if not self._submitted and not self.submit_next():
                return
            self._ahead.top_up_reads()
            batch = self._submitted[0]
            tiles = batch.wait()
            self._submitted.popleft()
            yield np.arange(batch.start, batch.stop, dtype=np.int64), tiles

    def submit_next(self) -> bool:
        """Hand the next batch to the workers; False when there is none, or the slide is not prepared yet."""
        if not self._future.done() or self._future.cancelled() or self._future.exception() is not None:
            return False
        prepared = self._future.result()
        start, stop = self._next, min(self._next + self._ahead.batch_size, prepared.n_tiles)
        if start >= stop:
            return False
        self._submitted.append(self._ahead.submit_batch(prepared, start, stop))
        self._next = stop
        return True

    @property
    def in_flight(self) -> int:
        """Tiles that are being read, or read and not yet used."""
        return sum(len(batch) for batch in self._submitted)

    def close(self) -> None:
        """Drop what was read ahead, wait for the workers to let go of the slide, and close it."""
        # Only what is running is waited for: a pool that was shut down never reports cancelled futures as done.
        wait([part for batch in self._submitted for part in batch.parts if not part.cancel()])
        if not self._future.cancel():
            wait([self._future])
        self._submitted.clear()
        if not self._future.cancelled() and self._future.exception() is None:
            self._future.result().close()


class ReadAhead(Generic[Item, P]):
    """The pool. Memory is bounded: at most about ``tiles_ahead`` tiles of all slides together wait for the model.

    Args:
        workers: Threads.
        batch_size: Tiles of a batch; the last one of a slide may be smaller.
        slides_ahead: Slides that are prepared while one is being embedded.
        pin: Batches go into page-locked memory, from which a GPU copies by itself.
    """

    def __init__(self, *, workers: int, batch_size: int = 1, slides_ahead: int = 2, pin: bool = False) -> None:
        self.batch_size = batch_size
        self._tiles_ahead = max(2 * batch_size, 2 * workers * PART_TILES)
        self._slides_ahead, self._pin = slides_ahead, pin
        self._turns: deque[Turn[Item, P]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="histotl-reader")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with unbroken():
            self._pool.shutdown(wait=True, cancel_futures=True)
            for turn in self._turns:
                turn.close()
            self._turns.clear()

    def turns(self, items: Sequence[Item], prepare: Callable[[Item], P]) -> Iterator[Turn[Item, P]]:
        """One turn an item, in order; a turn is closed when the next one is asked for."""
        coming = deque(items)
        while coming or self._turns:
            while coming and len(self._turns) <= self._slides_ahead:
                with unbroken():
                    item = coming.popleft()
                    self._turns.append(Turn(item, self._pool.submit(prepare, item), self))
            yield self._turns[0]
            with unbroken():
                self._turns.popleft().close()

    def top_up_reads(self) -> None:
        """Submit batches, those of the earliest slide first, until enough tiles are on their way."""
        in_flight = sum(turn.in_flight for turn in self._turns)
        for turn in self._turns:
            while in_flight < self._tiles_ahead:
                before = turn.in_flight
                if not turn.submit_next():
                    break
                in_flight += turn.in_flight - before

    def submit_batch(self, prepared: P, start: int, stop: int) -> Batch:
        """Share one batch out to the workers."""
        tiles = torch.empty((stop - start, *prepared.tile_shape, 3), dtype=torch.uint8, pin_memory=self._pin)
        into = tiles.numpy()

        def read(first: int, last: int) -> None:
            into[first - start : last - start] = prepared.read(slice(first, last))

        with unbroken():
            parts = [
                self._pool.submit(read, first, min(first + PART_TILES, stop))
                for first in range(start, stop, PART_TILES)
            ]
        return Batch(start=start, stop=stop, tiles=tiles, parts=tuple(parts))


H = TypeVar("H", bound="Closable")


class Closable(Protocol):
    """Something open."""

    def close(self) -> None:
        """Give it back."""


class Handles(Generic[H]):
    """Open handles on one file, lent to one thread at a time; a thread that finds none idle opens its own.

    Args:
        open_one: Opens another handle.
        first: A handle that is open already.
    """

    def __init__(self, open_one: Callable[[], H], first: H) -> None:
        self._open_one = open_one
        self._idle: SimpleQueue[H] = SimpleQueue()
        self._idle.put(first)

    @contextmanager
    def borrow(self) -> Iterator[H]:
        """Lend a handle for the length of the block."""
        try:
            handle = self._idle.get_nowait()
        except Empty:
            handle = self._open_one()
        try:
            yield handle
        finally:
            self._idle.put(handle)

    def close(self) -> None:
        """Close all handles; none may be lent any more."""
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return
