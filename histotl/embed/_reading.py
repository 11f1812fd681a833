"""Threads that prepare slides and read their tiles into batches before the model asks for them.

One feed lasts the whole run. *Planners* open and plan the coming slides; *readers* decode 16 tiles at a time straight
into a ring of reused batch buffers. A batch takes tiles of several slides where one ends and the next is ready, so
that small slides cost no small batches; when the next one is not ready yet, the model gets what there is instead of
waiting. Threads, because decoding releases the GIL: nothing is pickled, and a pixel is written once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from histotl.embed._interrupt import unbroken

PART_TILES = 16
"""Tiles in one unit of reading: handing it over costs nothing, and all readers can share in a batch."""

BUFFERS = 3
"""Fewest batches in memory: one in the model, one ready, one being read."""

_GLANCE_S = 0.01
"""Seconds after which a feed whose consumer had enough to do looks again whether it still has."""


class Prepared(Protocol):
    """A slide that is ready to be read."""

    @property
    def n_tiles(self) -> int:
        """Tiles to read; 0 when there is nothing to do."""

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Height and width of every tile."""

    @property
    def group(self) -> Hashable:
        """Tiles share a batch only within one group, because the same is done with all of a batch."""

    def read(self, rows: slice, out: npt.NDArray[np.uint8]) -> None:
        """Read tiles of some rows of the grid into uint8 (n, h, w, 3). Called from several threads at once."""

    def close(self) -> None:
        """Give back what is held (handles, locks); calling twice does no harm."""


Item = TypeVar("Item")
P = TypeVar("P", bound=Prepared)


class Turn(Generic[Item, P]):
    """One slide on its way: being prepared, then read part by part.

    Args:
        item: What was asked for.
        future: The prepared slide.
    """

    def __init__(self, item: Item, future: Future[P]) -> None:
        self.item = item
        self._future = future
        self._parts: deque[Future[None]] = deque()
        self._abandoned = False

    def prepared(self) -> P:
        """Wait until the slide is prepared; raises what preparing raised."""
        return self._future.result()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the slide is prepared, or preparing has failed, or the time is over."""
        wait([self._future], seconds)

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`prepared` will not wait."""
        return self._future.done()

    @property
    def n_tiles(self) -> int:
        """Tiles to read; 0 for a slide that could not be prepared or was abandoned."""
        failed = self._future.cancelled() or self._future.exception() is not None
        return 0 if failed or self._abandoned else self._future.result().n_tiles

    def abandon(self) -> None:
        """Read no more of it: it failed. What is on its way is skipped."""
        self._abandoned = True

    def read_part(self, pool: ThreadPoolExecutor, rows: slice, out: npt.NDArray[np.uint8]) -> Future[None]:
        """Have a reader fill ``out`` with some rows."""
        prepared = self._future.result()

        def read() -> None:
            if not self._abandoned:
                prepared.read(rows, out)

        while self._parts and self._parts[0].done():
            self._parts.popleft()
        part = pool.submit(read)
        self._parts.append(part)
        return part

    def close(self) -> None:
        """Wait until no reader has to do with the slide any more, and close it."""
        self.abandon()
        # Only what is running is waited for: a pool that was shut down never reports cancelled futures as done.
        wait([part for part in self._parts if not part.cancel()])
        self._parts.clear()
        if not self._future.cancel():
            wait([self._future])
        if not self._future.cancelled() and self._future.exception() is None:
            self._future.result().close()


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment(Generic[Item, P]):
    """Neighbouring tiles of one slide inside a batch.

    Args:
        turn: The slide.
        rows: Their rows in the slide's grid.
        at: Where they begin in the batch.
        is_last: Whether the slide ends here.
    """

    turn: Turn[Item, P]
    rows: slice
    at: int
    is_last: bool
    parts: list[Future[None]] = field(repr=False)

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def is_read(self) -> bool:
        """Wait until all of its tiles are read; raises what reading raised."""
        for part in self.parts:
            part.result()
        return True


@dataclass(kw_only=True, eq=False)
class Batch(Generic[Item, P]):
    """Tiles that go to the model together.

    Args:
        group: What its slides have in common.
        buffer: uint8 (batch size, h, w, 3), in page-locked memory where a GPU copies from it.
        segments: Which tiles of which slides.
    """

    group: Hashable
    buffer: torch.Tensor
    segments: list[Segment[Item, P]] = field(default_factory=list)
    room: int

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def tiles(self) -> torch.Tensor:
        """The tiles, uint8 (b, h, w, 3); right once every segment was waited for."""
        return self.buffer[: len(self)]


class Feed(Generic[Item, P]):
    """Planners, readers and the ring of buffers. Iterate over it: turns as they come up, and the batches.

    A turn comes before the first batch that has tiles of it. The consumer closes every turn, and releases every batch
    when its buffer may be filled again; memory is bounded because nothing is read without a free buffer.

    Args:
        readers: Threads that read tiles.
        planners: Threads that prepare slides.
        batch_size: Tiles in a batch; may be lowered or raised up to ``most_tiles`` while running.
        most_tiles: Tiles that a buffer has room for; ``batch_size`` when None.
        slides_ahead: Most slides that are prepared or being prepared and not yet being read.
        pin: Buffers lie in page-locked memory, from which a GPU copies by itself.
        held: Most batches that the consumer holds when it asks for the next.
        is_busy: Whether the consumer has enough to do, so that a batch can wait for tiles of the next slide.
    """

    def __init__(
        self,
        *,
        readers: int,
        planners: int = 1,
        batch_size: int = 1,
        most_tiles: int | None = None,
        slides_ahead: int = 4,
        pin: bool = False,
        held: int = BUFFERS - 1,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.batch_size = batch_size
        self._most_tiles = max(batch_size, most_tiles or batch_size)
        # Every reader has two parts to do while all but one of the held batches are in the model.
        held = max(held, BUFFERS - 1)
        self._buffers_left = held - 1 + max(2, -(-2 * readers * PART_TILES // batch_size))
        self._slides_ahead, self._pin, self._is_busy = slides_ahead, pin, is_busy
        self._planned: deque[Turn[Item, P]] = deque()
        self._open_turns: list[Turn[Item, P]] = []
        self._coming: deque[tuple[Item, Callable[[Item], P]]] = deque()
        self._events: deque[Turn[Item, P] | Batch[Item, P]] = deque()
        self._free: list[torch.Tensor] = []
        self._batch: Batch[Item, P] | None = None
        self._turn: Turn[Item, P] | None = None
        self._next_row = 0
        self._planners = ThreadPoolExecutor(planners, thread_name_prefix="histotl-planner")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="histotl-reader")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with unbroken():
            for turn in (*self._open_turns, *self._planned):
                turn.abandon()
            self._planners.shutdown(wait=True, cancel_futures=True)
            self._readers.shutdown(wait=True, cancel_futures=True)
            for turn in (*self._open_turns, *self._planned):
                turn.close()
            self._open_turns.clear()
            self._planned.clear()

    def over(self, items: Sequence[Item], prepare: Callable[[Item], P]) -> Iterator[Turn[Item, P] | Batch[Item, P]]:
        """Turns and batches, in the order of the items."""
        self._coming.extend((item, prepare) for item in items)
        while True:
            self._plan()
            self._fill()
            if self._events:
                yield self._events.popleft()
            elif self._batch is not None and self._batch.segments:
                if self._turn is None and self._planned and self._is_busy():
                    self._planned[0].wait(_GLANCE_S)
                else:
                    self._close_batch()  # the next slide is not ready: better a small batch than an idle model
            elif self._turn is not None:
                raise RuntimeError("all buffers are in use: the consumer releases batches before it asks for more")
            elif self._planned:
                self._planned[0].wait()
            else:
                return

    def release(self, batch: Batch[Item, P]) -> None:
        """The buffer of a batch may be filled again."""
        # A reader that was told to skip its part may still be in the middle of it.
        wait([part for segment in batch.segments for part in segment.parts])
        self._free.append(batch.buffer)

    def close(self, turn: Turn[Item, P]) -> None:
        """The consumer has done with a slide."""
        with unbroken():
            turn.close()
            self._open_turns.remove(turn)

    def _plan(self) -> None:
        while self._coming and len(self._planned) < self._slides_ahead:
            with unbroken():
                item, prepare = self._coming.popleft()
                self._planned.append(Turn(item, self._planners.submit(prepare, item)))

    def _fill(self) -> None:
        """Hand tiles to the readers, in order, for as long as there are slides that are ready and free buffers."""
        while True:
            if self._turn is None and not self._next_turn():
                return
            turn = self._turn
            if turn is None or self._next_row >= turn.n_tiles:
                self._turn = None
                continue
            prepared = turn.prepared()
            if self._batch is not None and (self._batch.group != prepared.group or not self._batch.room):
                self._close_batch()
            if self._batch is None:
                buffer = self._buffer(prepared.tile_shape)
                if buffer is None:
                    return
                self._batch = Batch(group=prepared.group, buffer=buffer, room=self.batch_size)
            self._read_into(self._batch, turn, prepared.n_tiles)

    def _next_turn(self) -> bool:
        if not self._planned or not self._planned[0].is_ready:
            return False
        with unbroken():
            turn = self._planned.popleft()
            self._open_turns.append(turn)
        self._events.append(turn)
        self._turn, self._next_row = turn, 0
        self._plan()
        return True

    def _read_into(self, batch: Batch[Item, P], turn: Turn[Item, P], n_tiles: int) -> None:
        start, at = self._next_row, len(batch)
        stop = min(n_tiles, start + batch.room)
        into = batch.buffer.numpy()
        with unbroken():
            parts = []
            for first in range(start, stop, PART_TILES):
                last = min(first + PART_TILES, stop)
                place = at + first - start
                parts.append(turn.read_part(self._readers, slice(first, last), into[place : place + last - first]))
            segment = Segment(turn=turn, rows=slice(start, stop), at=at, is_last=stop == n_tiles, parts=parts)
            batch.segments.append(segment)
            batch.room -= stop - start
            self._next_row = stop

    def _close_batch(self) -> None:
        if self._batch is not None:
            self._events.append(self._batch)
            self._batch = None

    def _buffer(self, tile_shape: tuple[int, int]) -> torch.Tensor | None:
        """A free buffer for tiles of a size; None while all are in use."""
        shape = (self._most_tiles, *tile_shape, 3)
        for place, buffer in enumerate(self._free):
            if buffer.shape == shape:
                return self._free.pop(place)
        if self._buffers_left:
            self._buffers_left -= 1
        elif self._free:
            self._free.pop()  # of another size: its memory goes to the new one
        else:
            return None
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
