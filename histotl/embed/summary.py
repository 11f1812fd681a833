"""What a run over many slides comes to: counts, and a table of the slides that failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from histotl.core.errors import HistotlError
from histotl.embed._tables import read_rows, write_rows
from histotl.embed.flags import Flag
from histotl.embed.telemetry import Telemetry

FAILURES_FILE = "failures.csv"
REPORT_HINT = "this is a fault in histotl or in a plug-in: please report it, with the traceback in the log"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A slide (or patch) that could not be used.

    Args:
        slide_id: Its name; the path text of the manifest for patches.
        path: Its file.
        error: Class of the error.
        message: What is wrong.
        hint: The cure.
    """

    slide_id: str
    path: str
    error: str
    message: str
    hint: str

    @property
    def sentence(self) -> str:
        """What is wrong, beginning with the slide's name; the messages of most errors do so already."""
        return self.message if self.slide_id in self.message else f"{self.slide_id}: {self.message}"

    @classmethod
    def of(cls, slide_id: str, path: Path, error: BaseException) -> Failure:
        """Record an error; one that histotl did not raise on purpose gets the hint to report it."""
        message = error.message if isinstance(error, HistotlError) else str(error) or repr(error)
        hint = error.hint if isinstance(error, HistotlError) else REPORT_HINT
        return cls(slide_id=slide_id, path=str(path), error=type(error).__name__, message=message, hint=hint)


@dataclass(frozen=True, kw_only=True)
class SlideQuality:
    """What the quality figures of one slide (or patch set) come to.

    Args:
        slide_id: Its name.
        n_tiles: Tiles in its file.
        medians: Column -> median over the tiles that have the figure; None where none has.
        doubtful: Column -> share of tiles worth a look, see :data:`histotl.image.measures.DOUBTFUL`.
    """

    slide_id: str
    n_tiles: int
    medians: Mapping[str, float | None]
    doubtful: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Result of a stage over slides.

    Args:
        done: Slides (or patch sets) for which something was made in this run.
        skipped: Slides whose files were there and current.
        failed: One record for each slide that could not be used.
        flagged: Slides of the run whose tissue mask may be wrong, those that were skipped too.
        busy: Slides left to another live process that holds their locks.
        n_tiles: Tiles planned (``tile``) or embedded (``embed``) in this run.
        seconds: Wall time.
        telemetry: Where the time went; None for ``tile`` and for runs in which nothing was embedded.
        quality: Quality figures of every slide that has a file, also of those that were there before.
        dropped: Tiles of this run's slides that ``--drop`` left out.
    """

    done: int
    skipped: int
    failed: tuple[Failure, ...] = ()
    flagged: tuple[Flag, ...] = ()
    busy: int = 0
    n_tiles: int = 0
    seconds: float = 0.0
    telemetry: Telemetry | None = None
    quality: tuple[SlideQuality, ...] = ()
    dropped: int = 0

    @property
    def ok(self) -> bool:
        """Whether no slide failed; the command line exits with 1 otherwise."""
        return not self.failed


def write_failures(out: Path, failures: Sequence[Failure], *, keep: Collection[str] = ()) -> None:
    """Write ``out/failures.csv``, or remove it when nothing failed.

    Args:
        out: Output folder of the run.
        failures: What failed in this run.
        keep: Slides that were left to another process: what that one recorded for them stays.
    """
    kept = [row for row in read_failures(out) if row.slide_id in keep]
    write_rows(out / FAILURES_FILE, Failure, [*failures, *kept])


def read_failures(out: Path) -> list[Failure]:
    """Read ``out/failures.csv``; empty when there is none."""
    return read_rows(out / FAILURES_FILE, Failure)
