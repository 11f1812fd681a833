"""Takes batches as they are read, has them computed, and hands the features on to be filed, in order.

Batches mix slides, so a slide is a ticket that is finished when its last segment is filed. What goes wrong is charged
to the slide it belongs to; the others in the same batch lose nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from histotl.core.values import SlideEntry
from histotl.embed._batch_size import BatchTuner
from histotl.embed._compute import Change, Compute, Features
from histotl.embed._filing import Filing
from histotl.embed._job import SlideJob, Work
from histotl.embed._models import Model
from histotl.embed._reading import Batch, Feed, Segment, Turn
from histotl.embed._slides import Account
from histotl.embed._views import Views
from histotl.embed._workers import Workers
from histotl.embed.telemetry import Clock
from histotl.image.stain.base import StainTransform

SlideTurn = Turn[SlideEntry, SlideJob]
SlideBatch = Batch[SlideEntry, SlideJob]
SlideSegment = Segment[SlideEntry, SlideJob]

_MOST_UNSETTLED = 8
"""Slides that may wait for the disk to take them before the device has to."""


@dataclass(kw_only=True, eq=False)
class _Ticket:
    """A slide in work.

    Args:
        turn: The slide.
        work: What is made of it.
        puts: Writes that were asked for.
        end: Done when its files are sealed, or, after a failure, when nothing is being written any more.
    """

    turn: SlideTurn
    work: Work
    puts: list[Future[None]] = field(default_factory=list)
    end: Future[None] | None = None


@dataclass(kw_only=True)
class ReadTotals:
    """What the readers of all slides did, and how many tiles were left out before them."""

    jpeg_tiles: int = 0
    fallback_tiles: int = 0
    bytes_read: int = 0
    dropped: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class OnTheWay:
    """A batch that is being computed.

    Args:
        batch: Its tiles.
        read: Its segments that could be read.
        models: They get the tiles.
        release: Gives its buffer back, where that waits for the features.
    """

    batch: SlideBatch
    read: list[SlideSegment]
    models: tuple[Model, ...]
    release: Callable[[], None]


Found = tuple[list[Features], float]
"""Features of a batch, and the seconds that a thread worked for them."""


class Flow:
    """Joins feed, device and files.

    Args:
        feed: Gives turns and batches.
        compute: The device.
        workers: Its threads.
        filing: The writing thread.
        account: What became of the slides.
        clock: Seconds by stage.
        tuner: Finds the batch size while running; None where it is fixed.
        one_transform: The stain transform is the same for all slides.
        views: The augmented views to make of every tile; None for none.
        figures: Measures the quality of tiles; None where nobody asked.
    """

    def __init__(
        self,
        *,
        feed: Feed[SlideEntry, SlideJob],
        compute: Compute,
        workers: Workers[OnTheWay, Found],
        filing: Filing,
        account: Account,
        clock: Clock,
        tuner: BatchTuner | None,
        one_transform: bool,
        views: Views | None = None,
        figures: Change | None = None,
    ) -> None:
        self._feed, self._compute, self._filing, self._account = feed, compute, filing, account
        self._workers = workers
        self._clock, self._tuner, self._one_transform = clock, tuner, one_transform
        self._views, self._figures = views, figures
        self._tickets: dict[SlideTurn, _Ticket] = {}
        self.totals = ReadTotals()

    def over(self, entries: Sequence[SlideEntry], prepare: Callable[[SlideEntry], SlideJob]) -> None:
        """Embed all slides."""
        events = self._feed.over(entries, prepare)
        while (event := self._next(events)) is not None:
            if isinstance(event, Turn):
                self._begin(event)
            else:
                self._embed(event)
            self._file_finished()
            self._settle(most=_MOST_UNSETTLED)
        self._file_finished(wait_for_all=True)
        self._compute.finish()
        self._settle(most=0)
        self._account.tell()

    def _next(self, events: Iterator[SlideTurn | SlideBatch]) -> SlideTurn | SlideBatch | None:
        with self._workers.waiting(self._clock):
            return next(events, None)

    def _begin(self, turn: SlideTurn) -> None:
        job = self._account.attempt([turn], turn.prepared)
        if job is not None and job.work is not None and job.n_tiles:
            self.totals.dropped += job.dropped
            self._tickets[turn] = _Ticket(turn=turn, work=job.work)
            return
        if job is not None:
            self._account.count(turn.item, job.state)
        self._feed.close(turn)

    def _embed(self, batch: SlideBatch) -> None:
        with self._workers.waiting(self._clock):
            read = [segment for segment in batch.segments if self._account.attempt([segment.turn], segment.is_read)]
        if not read:
            self._feed.release(batch)
            return
        release = partial(self._feed.release, batch)
        # Beside this thread a batch may fail after its buffer could be filled again, and is then computed once more.
        early, late = (_nothing, release) if self._workers.are_beside else (release, _nothing)
        models = self._tickets[read[0].turn].work.models
        self._workers.begin(
            OnTheWay(batch=batch, read=read, models=models, release=late),
            self._work(batch.tiles, batch.segments, models, early),
        )

    def _work(
        self,
        tiles: torch.Tensor,
        segments: Sequence[SlideSegment],
        models: Sequence[Model],
        release: Callable[[], None],
    ) -> Callable[[], Found]:
        """What computes the features of some segments, in any thread."""
        transform, views = self._transform(segments), self._augments(segments)

        def work() -> Found:
            began = time.perf_counter()
            found = self._compute.run(tiles, transform, models, release, views, self._figures)
            return found, time.perf_counter() - began

        return work

    def _file_finished(self, *, wait_for_all: bool = False) -> None:
        for on_the_way, answer in self._workers.finished(wait_for_all=wait_for_all):
            for segment, found, at in self._features(on_the_way, answer):
                # It may have failed meanwhile, and is closed then.
                if not self._account.has_failed(segment.turn.item):
                    self._file(segment, found, at)
            on_the_way.release()

    def _features(
        self, on_the_way: OnTheWay, answer: Callable[[], Found]
    ) -> Iterator[tuple[SlideSegment, list[Features], int]]:
        """Features of every segment that has some, and where in their batch it begins."""
        batch, read = on_the_way.batch, on_the_way.read
        together = self._account.attempt([segment.turn for segment in read], answer)
        if together is not None:
            found, seconds = together
            if self._tuner is not None:
                self._tuner.observe(len(batch), seconds)
                self._feed.batch_size = self._tuner.batch_size
            yield from ((segment, found, segment.at) for segment in read)
            return
        for segment in read if len(read) > 1 else ():
            tiles = batch.tiles[segment.at : segment.at + len(segment)]
            if not self._account.has_failed(segment.turn.item):
                alone = self._work(tiles, [segment], on_the_way.models, _nothing)
                if (own := self._account.attempt([segment.turn], alone)) is not None:
                    yield segment, own[0], 0
        self._compute.finish()  # the buffer was released by the first attempt: nothing may still be copied from it

    def _transform(self, segments: Sequence[SlideSegment]) -> Change:
        """Every slide's tiles through its own stain transform; those of slides that failed through none.

        Their pixels go through unused, to keep the batch's shape.
        """
        tickets = [self._tickets.get(segment.turn) for segment in segments]
        own = [None if ticket is None else ticket.work.transform for ticket in tickets]
        known = [transform for transform in own if transform is not None]
        if self._one_transform or len(segments) == 1:
            return known[0]
        return partial(_transformed, own, [len(segment) for segment in segments])

    def _augments(self, segments: Sequence[SlideSegment]) -> list[Change]:
        """What makes each view of a batch; the seed of a tile follows from its slide and its row there."""
        views = self._views
        if views is None:
            return []
        places = [(seg.turn.item.slide_id, range(seg.rows.start, seg.rows.stop)) for seg in segments]
        return [views.maker(places, number) for number in range(views.count)]

    def _file(self, segment: SlideSegment, found: list[Features], at: int) -> None:
        ticket = self._tickets[segment.turn]
        rows = np.arange(segment.rows.start, segment.rows.stop, dtype=np.int64)
        writers = ticket.work.writers
        if self._figures is not None:
            *found, figures = found
            ticket.puts += [self._filing.put_quality(writer, rows, figures, at) for writer in writers]
        for place, features in enumerate(found):
            view, model = divmod(place, len(writers))
            ticket.puts.append(self._filing.put(writers[model], rows, features, at, view=view - 1 if view else None))
        self._account.count_tiles(segment.turn.item, len(segment))
        if segment.is_last:
            ticket.end = self._filing.seal(ticket.work.writers)

    def _settle(self, *, most: int) -> None:
        """Close the slides that are finished or failed; wait for the oldest when more than ``most`` are not."""
        ending = 0
        for ticket in list(self._tickets.values()):
            while ticket.puts and ticket.puts[0].done():
                self._account.attempt([ticket.turn], ticket.puts.pop(0).result)
            if ticket.end is None and self._account.has_failed(ticket.turn.item):
                ticket.end = self._filing.drain()
            ending += ticket.end is not None
        for ticket in list(self._tickets.values()):
            if ticket.end is not None and (ticket.end.done() or ending > most):
                ending -= 1
                self._close(ticket, ticket.end)

    def _close(self, ticket: _Ticket, end: Future[None]) -> None:
        turn = ticket.turn
        for put in ticket.puts:
            self._account.attempt([turn], put.result)
        self._account.attempt([turn], end.result)
        stats = ticket.work.tiles.stats
        self.totals.jpeg_tiles += stats.jpeg_decoded
        self.totals.fallback_tiles += stats.fallback_tiles
        self.totals.bytes_read += stats.bytes_read
        # What the slide library reads region by region cannot be told apart: it is mostly decoding.
        decode_s = stats.decode_s + stats.fallback_s
        for stage, seconds in (("read", stats.read_s), ("decode", decode_s), ("resample", stats.resample_s)):
            self._clock.add(stage, seconds)
        del self._tickets[turn]
        # Closed before it is counted: whoever sees the count may rely on the files and locks.
        self._feed.close(turn)
        if not self._account.has_failed(turn.item):
            self._account.count(turn.item, "done")


def _transformed(own: list[StainTransform | None], lengths: list[int], tiles: torch.Tensor) -> torch.Tensor:
    parts = zip(torch.split(tiles, lengths), own, strict=True)
    return torch.cat([part if transform is None else transform(part) for part, transform in parts])


def _nothing() -> None:
    pass
