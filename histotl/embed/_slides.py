"""The loop over slides that both verbs share, with the one place where any error of a slide is caught."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from histotl.core.errors import HistotlError
from histotl.core.progress import Report, Step
from histotl.core.registry import create
from histotl.core.values import SlideEntry
from histotl.embed._claim import State
from histotl.embed._reading import Prepared, ReadAhead, Turn
from histotl.embed.config import TileConfig
from histotl.embed.summary import Failure, RunSummary, write_failures
from histotl.wsi.manifest import load_manifest
from histotl.wsi.slide import Slide, open_slide

log = logging.getLogger(__name__)


class Job(Prepared, Protocol):
    """A prepared slide that says whether there is something to do."""

    @property
    def state(self) -> State:
        """What the loop does with it."""


J = TypeVar("J", bound=Job)
Advance = Callable[[int], None]
"""Called with a number of tiles that were just finished."""


@dataclass
class _Tally:
    done: int = 0
    skipped: int = 0
    tiles: int = 0
    failed: list[Failure] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)

    @property
    def slides(self) -> int:
        return self.done + self.skipped + len(self.failed) + len(self.busy)


@dataclass(frozen=True, kw_only=True)
class SlideRun(Generic[J]):
    """A stage over many slides.

    Args:
        stage: ``tile`` or ``embed``.
        prepare: Makes a job of an entry; runs in a worker thread, ahead of its turn.
        work: Does the job in the main thread, slide after slide in the order of the entries.
        ahead: The worker threads.
        out: Folder that gets ``failures.csv``.
        report: Told about every batch and slide.
    """

    stage: str
    prepare: Callable[[SlideEntry], J]
    work: Callable[[J, Turn[SlideEntry, J], Advance], None]
    ahead: ReadAhead[SlideEntry, J]
    out: Path
    report: Report

    def over(self, entries: Sequence[SlideEntry]) -> RunSummary:
        """Run; slides that fail are recorded and the run goes on."""
        tally, started = _Tally(), time.monotonic()
        try:
            for turn in self.ahead.turns(entries, self.prepare):
                self._tell(tally, len(entries), turn.item.slide_id)
                self._one(turn, tally, len(entries))
            self._tell(tally, len(entries))
        finally:
            write_failures(self.out, tally.failed, keep=tally.busy)
        return RunSummary(
            done=tally.done,
            skipped=tally.skipped,
            failed=tuple(tally.failed),
            busy=len(tally.busy),
            n_tiles=tally.tiles,
            seconds=time.monotonic() - started,
        )

    def _one(self, turn: Turn[SlideEntry, J], tally: _Tally, total: int) -> None:
        entry = turn.item

        def advance(n_tiles: int) -> None:
            tally.tiles += n_tiles
            self._tell(tally, total, entry.slide_id)

        try:
            job = turn.prepared()
            if job.state == "ready":
                self.work(job, turn, advance)
                tally.done += 1
            elif job.state == "busy":
                tally.busy.append(entry.slide_id)
            else:
                tally.skipped += 1
        except Exception as error:
            # The only broad except of the package: whatever is wrong with one slide, the others go on.
            failure = Failure.of(entry.slide_id, entry.path, error)
            tally.failed.append(failure)
            # What histotl did not raise on purpose is a fault of its own, and needs the traceback.
            known = isinstance(error, HistotlError)
            level, trace = (logging.INFO, None) if known else (logging.ERROR, error)
            log.log(level, "%s failed: %s: %s", entry.slide_id, failure.error, failure.message, exc_info=trace)
            self._tell(tally, total, entry.slide_id, failure.sentence)

    def _tell(self, tally: _Tally, total: int, item: str = "", message: str = "") -> None:
        self.report(
            Step(
                stage=self.stage,
                done=tally.slides,
                total=total,
                item=item,
                units_done=tally.tiles,
                units="tiles",
                message=message,
            )
        )


def list_entries(slides: str | Path, tiling: TileConfig) -> list[SlideEntry]:
    """The slides of a run; a reader that does not exist is refused here, before the first of them is opened."""
    if tiling.reader is not None:
        create("reader", tiling.reader)
    return load_manifest(slides, mpp_override=tiling.mpp_override)


def open_entry(entry: SlideEntry, tiling: TileConfig) -> Slide:
    """Open the slide of a manifest row."""
    return open_slide(
        entry.path, mpp=entry.mpp, mpp_source=entry.mpp_source, slide_id=entry.slide_id, reader=tiling.reader
    )
