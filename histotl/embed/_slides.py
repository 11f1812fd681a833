"""The account of a run over slides, with the one place where any error of a slide is caught."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from histotl.core.errors import HistotlError
from histotl.core.progress import Report, Step
from histotl.core.registry import create
from histotl.core.values import SlideEntry, TileSpec
from histotl.embed._reading import Turn
from histotl.embed.config import TileConfig
from histotl.embed.flags import Flag, record_flags
from histotl.embed.summary import Failure, RunSummary, write_failures
from histotl.embed.telemetry import Telemetry
from histotl.wsi.manifest import load_manifest
from histotl.wsi.slide import Slide, open_slide

log = logging.getLogger(__name__)

T = TypeVar("T")


class Account:
    """What became of every slide of a run; tells the progress and writes ``failures.csv``.

    Args:
        stage: ``tile`` or ``embed``.
        total: Slides in all.
        out: Folder that gets ``failures.csv``.
        report: Told about every batch and slide.
    """

    def __init__(self, *, stage: str, total: int, out: Path, report: Report) -> None:
        self._stage, self._total, self._out, self._report = stage, total, out, report
        self._began = time.monotonic()
        self._failed: dict[str, Failure] = {}
        self._flagged: tuple[Flag, ...] = ()
        self._done, self._skipped, self._tiles = 0, 0, 0
        self._busy: list[str] = []

    def attempt(self, turns: Sequence[Turn[SlideEntry, Any]], work: Callable[[], T]) -> T | None:
        """Do something for one slide, or for several that share a batch.

        When it fails for one, the slide is recorded as failed and nothing more is read of it. When it fails for
        several nothing is recorded: the caller tries them one by one, which tells whose fault it is.

        Returns:
            What ``work`` gives; None when it failed, or when the one slide failed before.
        """
        if len(turns) == 1 and self.has_failed(turns[0].item):
            return None
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - see below
            # The only broad except of the package: whatever is wrong with one slide, the others go on.
            if len(turns) == 1:
                self._record(turns[0], error)
            return None

    def _record(self, turn: Turn[SlideEntry, Any], error: Exception) -> None:
        turn.abandon()
        entry = turn.item
        failure = Failure.of(entry.slide_id, entry.path, error)
        self._failed[entry.slide_id] = failure
        # What histotl did not raise on purpose is a fault of its own, and needs the traceback.
        known = isinstance(error, HistotlError)
        level, trace = (logging.INFO, None) if known else (logging.ERROR, error)
        log.log(level, "%s failed: %s: %s", entry.slide_id, failure.error, failure.message, exc_info=trace)
        self.tell(entry.slide_id, failure.sentence)

    def has_failed(self, entry: SlideEntry) -> bool:
        """Whether a slide is recorded as failed."""
        return entry.slide_id in self._failed

    def count_tiles(self, entry: SlideEntry, n_tiles: int) -> None:
        """Some tiles of a slide were finished."""
        self._tiles += n_tiles
        self.tell(entry.slide_id)

    def count(self, entry: SlideEntry, became: str) -> None:
        """A slide is finished: ``done``, ``current`` or ``busy``."""
        if became == "done":
            self._done += 1
        elif became == "busy":
            self._busy.append(entry.slide_id)
        else:
            self._skipped += 1
        self.tell(entry.slide_id)

    @property
    def n_tiles(self) -> int:
        """Tiles finished."""
        return self._tiles

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def write_failures(self) -> None:
        """Write the table of the slides that failed, or remove an old one."""
        write_failures(self._out, list(self._failed.values()), keep=self._busy)

    def record_flags(self, spec: TileSpec, entries: Sequence[SlideEntry], fallbacks: Mapping[str, str]) -> None:
        """Note the slides whose mask may be wrong, and those that were not normalised by their own stain."""
        self._flagged = record_flags(self._out, spec, entries, failed=self._failed, fallbacks=fallbacks)

    def summary(self, telemetry: Telemetry | None = None) -> RunSummary:
        """The result of the run."""
        told = RunSummary(
            done=self._done,
            skipped=self._skipped,
            failed=tuple(self._failed.values()),
            flagged=self._flagged,
            busy=len(self._busy),
            n_tiles=self._tiles,
            seconds=self.seconds,
        )
        return told if telemetry is None else replace(told, telemetry=telemetry)

    def tell(self, item: str = "", message: str = "") -> None:
        """Report the progress."""
        done = self._done + self._skipped + len(self._failed) + len(self._busy)
        self._report(
            Step(
                stage=self._stage,
                done=done,
                total=self._total,
                item=item,
                units_done=self._tiles,
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
