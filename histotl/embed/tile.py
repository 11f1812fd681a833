"""Slides in, plans out: tissue outlines, grids, preview pictures and coordinates. Nothing is embedded."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from histotl.core.errors import StoreError
from histotl.core.progress import Report, silent
from histotl.core.provenance import Provenance
from histotl.core.registry import identified
from histotl.core.values import SlideEntry
from histotl.embed._claim import claim
from histotl.embed._job import SlideJob
from histotl.embed._plan import plan_slide, source_digest, tissue_finder
from histotl.embed._reading import Feed, Turn
from histotl.embed._slides import Account, list_entries, open_entry
from histotl.embed.config import TileConfig
from histotl.embed.device import usable_cores
from histotl.embed.summary import RunSummary
from histotl.store import layout
from histotl.store.coords import read_coords
from histotl.wsi.tissue.base import TissueFinder

log = logging.getLogger(__name__)

_MAX_WORKERS = 8


def tile_slides(
    slides: str | Path,
    out: str | Path,
    *,
    tiling: TileConfig = TileConfig(),  # noqa: B008 - frozen
    report: Report = silent,
) -> RunSummary:
    """Plan the tiles of every slide, and draw them.

    Writes what :func:`histotl.embed.engine.embed_slides` writes, features excepted, into the same places.

    Args:
        slides: A file, a folder, a glob or a manifest CSV.
        out: Output folder.
        tiling: Which tiles.
        report: Told about progress.

    Raises:
        UsageError: A name, spec or manifest is wrong; before any slide is opened.
    """
    tiler = _Tiler(out=Path(out), tiling=tiling, finder=tissue_finder(tiling))
    entries = list_entries(slides, tiling)
    layout.prepare_output(tiler.out)
    layout.remove_stale_parts(tiler.out)
    planners = min(_MAX_WORKERS, usable_cores())
    account = Account(stage="tile", total=len(entries), out=tiler.out, report=report)
    try:
        with Feed[SlideEntry, SlideJob](readers=1, planners=planners, slides_ahead=2 * planners) as feed:
            for turn in feed.over(entries, tiler.prepare):
                if isinstance(turn, Turn):  # there is nothing to read, so there are no batches
                    _count(turn, account)
                    feed.close(turn)
    finally:
        account.write_failures()
    account.record_flags(tiling.spec, entries, {})
    return account.summary()


@dataclass(frozen=True, kw_only=True)
class _Tiler:
    """What the plan of every slide needs."""

    out: Path
    tiling: TileConfig
    finder: TissueFinder

    def prepare(self, entry: SlideEntry) -> SlideJob:
        """All the work on one slide; several slides at a time, each in a worker thread."""
        with ExitStack() as held:
            slide = open_entry(entry, self.tiling)
            held.callback(slide.close)
            source = source_digest(slide.info, self.tiling, self.finder)
            path = layout.coords_path(self.out, self.tiling.spec, entry.slide_id)
            state, _ = claim([path], lambda key: key, lambda key: self._is_current(key, entry, source), held)
            if state != "ready":
                return SlideJob(state=state)
            specs = {"tiling": asdict(self.tiling), "tissue": identified(self.finder)}
            made = Provenance.now(specs=specs, inputs={"slide": slide.info.fingerprint, "source": source})
            grid = plan_slide(slide, self.tiling, self.finder, self.out, made, source)
            return SlideJob(state=state, info=slide.info, grid=grid, held=held.pop_all())

    def _is_current(self, path: Path, entry: SlideEntry, source: str) -> bool:
        if not path.is_file() or not layout.contour_path(self.out, entry.slide_id).is_file():
            return False
        try:
            found = read_coords(path)
        except StoreError as error:
            log.warning("will be made again: %s", error.message)
            return False
        return found.source_fingerprint == source and found.tiles == asdict(self.tiling.spec)


def _count(turn: Turn[SlideEntry, SlideJob], account: Account) -> None:
    job = account.attempt([turn], turn.prepared)
    if job is not None:
        account.count_tiles(turn.item, 0 if job.grid is None else len(job.grid))
        account.count(turn.item, "done" if job.state == "ready" else job.state)
