"""The reader pool: order, bounds, errors and handles, without slides."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from histotl.embed._reading import PART_TILES, Handles, ReadAhead


@dataclass
class Numbers:
    """A "slide" whose tile i is filled with i."""

    n_tiles: int
    read_rows: list[slice] = field(default_factory=list)
    closed: int = 0
    fails_at: int | None = None
    seconds: float = 0.001
    tile_shape: tuple[int, int] = (2, 3)

    def read(self, rows: slice) -> np.ndarray:
        self.read_rows.append(rows)
        if self.fails_at is not None and rows.start <= self.fails_at < rows.stop:
            raise OSError("unreadable")
        time.sleep(self.seconds * (rows.start % 3))  # parts of a batch end in any order
        values = np.arange(rows.start, rows.stop, dtype=np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(values), 2, 3, 3))

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (3, 40), (2, 7), (4, 1000)])
def test_batches_come_in_order_and_whole(workers, batch_size):
    slides = [Numbers(n) for n in (100, 1, 0, 33)]
    with ReadAhead[Numbers, Numbers](workers=workers, batch_size=batch_size) as ahead:
        for slide, turn in zip(slides, ahead.turns(slides, lambda s: s), strict=True):
            assert turn.item is slide
            rows = []
            for places, tiles in turn.batches():
                assert tiles.shape == (len(places), 2, 3, 3)
                assert (tiles.numpy() == places[:, None, None, None]).all()
                rows += places.tolist()
            assert rows == list(range(slide.n_tiles))
    assert [slide.closed for slide in slides] == [1, 1, 1, 1]


def test_the_next_slide_is_prepared_and_read_while_one_is_in_use():
    slides = [Numbers(8), Numbers(8)]
    with ReadAhead[Numbers, Numbers](workers=1, batch_size=8) as ahead:
        turns = ahead.turns(slides, lambda s: s)
        batches = next(turns).batches()
        next(batches)
        with pytest.raises(StopIteration):
            next(batches)
        deadline = time.monotonic() + 5
        while not slides[1].read_rows and time.monotonic() < deadline:
            ahead.top_up_reads()
            time.sleep(0.01)
        assert slides[1].read_rows
        assert slides[1].closed == 0


def test_memory_is_bounded():
    slide = Numbers(250)
    with ReadAhead[Numbers, Numbers](workers=1, batch_size=4) as ahead:
        turn = next(ahead.turns([slide], lambda s: s))
        next(turn.batches())
        time.sleep(0.1)
        assert max(rows.stop for rows in slide.read_rows) <= 4 + max(2 * 4, 2 * PART_TILES) + 4


def test_errors_belong_to_their_slide():
    slides = [Numbers(100, fails_at=50), Numbers(10)]

    def prepare(slide: Numbers) -> Numbers:
        if slide.n_tiles == 10:
            raise ValueError("cannot be opened")
        return slide

    with ReadAhead[Numbers, Numbers](workers=2, batch_size=10) as ahead:
        turns = ahead.turns(slides, prepare)
        first = next(turns)
        seen = 0
        with pytest.raises(OSError, match="unreadable"):  # noqa: PT012 - how far it comes is the point
            for places, _ in first.batches():
                seen += len(places)
        assert seen == 50
        with pytest.raises(ValueError, match="cannot be opened"):
            next(turns).prepared()
    assert slides[0].closed == 1


def interrupted(slides: list[Numbers]) -> None:
    with ReadAhead[Numbers, Numbers](workers=2, batch_size=5) as ahead:
        turn = next(ahead.turns(slides, lambda s: s))
        next(turn.batches())
        raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_leaving_early_closes_what_was_prepared_ahead(seconds):
    slides = [Numbers(250, seconds=seconds) for _ in range(4)]  # with slow reads, some are still in the queue
    with pytest.raises(KeyboardInterrupt):
        interrupted(slides)
    # The fourth lies beyond the two that are prepared ahead.
    assert [slide.closed for slide in slides] == [1, 1, 1, 0]
    assert not [t for t in threading.enumerate() if t.name.startswith("histotl-reader")]


def test_a_handle_is_lent_to_one_thread_at_a_time():
    class Handle:
        def __init__(self) -> None:
            self.users, self.closed = 0, False

        def close(self) -> None:
            self.closed = True

    opened: list[Handle] = []

    def open_one() -> Handle:
        opened.append(Handle())
        return opened[-1]

    first = Handle()
    handles = Handles(open_one, first)

    def use() -> None:
        for _ in range(50):
            with handles.borrow() as handle:
                handle.users += 1
                assert handle.users == 1
                handle.users -= 1

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) <= 3
    handles.close()
    assert all(handle.closed for handle in [first, *opened])
