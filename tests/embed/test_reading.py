"""The feed: order, mixed batches, bounds and errors, without slides."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from histotl.embed._reading import BUFFERS, PART_TILES, Batch, Feed, Turn


@dataclass(eq=False)
class Numbers:
    """A "slide" whose tile i is filled with i."""

    n_tiles: int
    read_rows: list[slice] = field(default_factory=list)
    closed: int = 0
    fails_at: int | None = None
    seconds: float = 0.001
    tile_shape: tuple[int, int] = (2, 3)
    group: str = "one"

    def read(self, rows: slice, out: np.ndarray) -> None:
        self.read_rows.append(rows)
        if self.fails_at is not None and rows.start <= self.fails_at < rows.stop:
            raise OSError("unreadable")
        time.sleep(self.seconds * (rows.start % 3))  # parts of a batch end in any order
        out[:] = np.arange(rows.start, rows.stop, dtype=np.uint8)[:, None, None, None]

    def close(self) -> None:
        self.closed += 1


NumberFeed = Feed[Numbers, Numbers]


def same(slide: Numbers) -> Numbers:
    return slide


def consume(feed: NumberFeed, slides: list[Numbers], prepare=same) -> Iterator[tuple[Numbers, range, np.ndarray]]:
    """Every segment that could be read, with its tiles; closes and releases as a consumer has to."""
    for event in feed.over(slides, prepare):
        if isinstance(event, Turn):
            continue
        tiles = event.tiles.numpy()
        for segment in event.segments:
            segment.is_read()
            rows = range(segment.rows.start, segment.rows.stop)
            yield segment.turn.item, rows, tiles[segment.at : segment.at + len(segment)]
            if segment.is_last:
                feed.close(segment.turn)
        feed.release(event)


@pytest.mark.parametrize(("readers", "batch_size"), [(1, 1), (3, 40), (2, 7), (4, 1000)])
def test_all_tiles_come_in_order(readers, batch_size):
    slides = [Numbers(n) for n in (100, 1, 0, 33)]
    seen: dict[int, list[int]] = {}
    with NumberFeed(readers=readers, batch_size=batch_size) as feed:
        for slide, rows, tiles in consume(feed, slides):
            assert (tiles == np.array(rows, np.uint8)[:, None, None, None]).all()
            seen.setdefault(slides.index(slide), []).extend(rows)
    assert seen == {0: list(range(100)), 1: [0], 3: list(range(33))}
    assert [slide.closed for slide in slides] == [1, 1, 1, 1]


def batches_of(feed: NumberFeed, slides: list[Numbers], prepare=same) -> list[list[tuple[int, int]]]:
    """(slide, tiles) of the segments of every batch."""
    found = []
    for event in feed.over(slides, prepare):
        if isinstance(event, Batch):
            found.append([(slides.index(s.turn.item), len(s)) for s in event.segments])
            feed.release(event)
    return found


def test_small_slides_share_batches():
    slides = [Numbers(n) for n in (5, 3, 20, 1, 1)]
    ready = threading.Barrier(2, timeout=5)  # the first is prepared only when the fifth is

    def prepare(slide: Numbers) -> Numbers:
        if slide in (slides[0], slides[4]):
            ready.wait()
        return slide

    with NumberFeed(readers=1, planners=5, slides_ahead=5, batch_size=8) as feed:
        found = batches_of(feed, slides, prepare)
    assert [segment for batch in found for segment in batch] == [
        *((0, 5), (1, 3)),
        *((2, 8), (2, 8), (2, 4)),
        *((3, 1), (4, 1)),
    ]
    assert [len(batch) for batch in found] == [2, 1, 1, 3]


def test_the_model_is_not_kept_waiting_for_the_next_slide():
    slides, go = [Numbers(3), Numbers(3)], threading.Event()

    def prepare(slide: Numbers) -> Numbers:
        if slide is slides[1]:
            go.wait(5)
        return slide

    with NumberFeed(readers=1, planners=2, batch_size=8) as feed:
        events = feed.over(slides, prepare)
        assert isinstance(next(events), Turn)
        first = next(events)
        assert isinstance(first, Batch)
        assert len(first) == 3
        go.set()
        feed.release(first)
        assert [type(event) for event in events] == [Turn, Batch]


def test_groups_do_not_mix():
    slides = [
        Numbers(2),
        Numbers(2, group="two"),
        Numbers(2, group="two"),
        Numbers(2, tile_shape=(4, 4), group="three"),
    ]
    with NumberFeed(readers=1, planners=4, batch_size=64) as feed:
        found = batches_of(feed, slides)
    assert all(len({slides[place].group for place, _ in batch}) == 1 for batch in found)
    assert sum(n for batch in found for _, n in batch) == 8


def test_the_batch_size_may_change_while_running():
    with NumberFeed(readers=1, batch_size=2, most_tiles=32) as feed:
        sizes = []
        for event in feed.over([Numbers(200)], same):
            if isinstance(event, Batch):
                sizes.append(len(event))
                feed.release(event)
                feed.batch_size = 20
    assert sizes[0] == 2
    assert max(sizes) == 20
    assert sum(sizes) == 200


def test_memory_is_bounded():
    slides = [Numbers(250), Numbers(250)]
    with NumberFeed(readers=1, batch_size=16) as feed:
        events = feed.over(slides, same)
        assert isinstance(next(events), Turn)
        held = [next(events)]
        time.sleep(0.1)
        assert max(rows.stop for rows in slides[0].read_rows) <= 16 * max(BUFFERS, 1 + 2 * PART_TILES // 16)
        with pytest.raises(RuntimeError, match="buffers"):  # noqa: PT012 - how far it comes does not matter
            while True:
                held.append(next(events))
        assert len(held) <= BUFFERS + 1


def test_errors_belong_to_their_slide():
    slides = [Numbers(100, fails_at=50), Numbers(10), Numbers(7)]

    def prepare(slide: Numbers) -> Numbers:
        if slide is slides[1]:
            raise ValueError("cannot be opened")
        return slide

    good: dict[int, int] = {}
    with NumberFeed(readers=2, batch_size=10) as feed:
        for event in feed.over(slides, prepare):
            if isinstance(event, Turn):
                if event.item is slides[1]:
                    with pytest.raises(ValueError, match="cannot be opened"):
                        event.prepared()
                continue
            for segment in event.segments:
                place = slides.index(segment.turn.item)
                try:
                    segment.is_read()
                except OSError:
                    segment.turn.abandon()
                else:
                    good[place] = good.get(place, 0) + len(segment)
            feed.release(event)
    # After the failure nothing more is asked for; what was on its way is skipped and does not fail.
    assert 50 <= good[0] < 100
    assert good[2] == 7
    assert sum(rows.stop - rows.start for rows in slides[0].read_rows) < 100
    assert [slide.closed for slide in slides] == [1, 0, 1]


def interrupted(slides: list[Numbers]) -> None:
    with NumberFeed(readers=2, batch_size=5, slides_ahead=2) as feed:
        for event in feed.over(slides, same):
            if isinstance(event, Batch):
                for turn in feed._planned:
                    turn.wait()
                raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_leaving_early_closes_what_was_prepared_ahead(seconds):
    slides = [Numbers(250, seconds=seconds) for _ in range(4)]  # with slow reads, some are still in the queue
    with pytest.raises(KeyboardInterrupt):
        interrupted(slides)
    # The fourth lies beyond the two that are prepared ahead.
    assert [slide.closed for slide in slides] == [1, 1, 1, 0]
    assert not [t for t in threading.enumerate() if t.name.startswith("histotl-")]
