"""Slides in, feature files out: open, plan, read, normalise, embed, file, seal.

Several kinds of threads share the work. Planners open the coming slides, find their tissue and begin their files;
readers decode tiles into batches (:mod:`histotl.embed._reading`); batches go through stain normaliser and backbones, on
a CPU several side by side, each in a thread on one core (:mod:`histotl.embed._workers`), on a GPU in the main thread;
that one keeps all in order (:mod:`histotl.embed._flow`), and one more writes features (:mod:`histotl.embed._filing`).
Batches mix slides, so the device never waits for the end of one. A slide that fails is recorded and the run goes on. A
file with its final name is whole: it is written under a temporary name and renamed at the end, so an interrupted run is
simply started again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from histotl.core.condition import Condition
from histotl.core.device import choose_device
from histotl.core.progress import Report, silent
from histotl.core.provenance import Provenance
from histotl.core.registry import create, identified
from histotl.core.values import SlideEntry, SlideInfo, TileGrid
from histotl.embed._accelerator import accelerator_of
from histotl.embed._batch_size import choose_batches
from histotl.embed._claim import State, claim
from histotl.embed._compute import Compute, measured
from histotl.embed._decoder import DecoderChoice
from histotl.embed._filing import Filing
from histotl.embed._flow import Flow, Found, OnTheWay
from histotl.embed._job import SlideJob, Work
from histotl.embed._models import Model, load_models, made_ready, warn_of_other_identity
from histotl.embed._plan import plan_slide, source_digest, tissue_finder
from histotl.embed._quality import drop_condition, figures_of, quality_extras, slide_quality, without_dropped
from histotl.embed._reading import Feed, Turn
from histotl.embed._slides import Account, list_entries, open_entry
from histotl.embed._views import Views, views_of
from histotl.embed._workers import Workers
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.device import Forwards, choose_forwards, choose_planners, choose_workers, compute_settings
from histotl.embed.stain_target import StainPlan, fallen_back, look_up, sample_slide
from histotl.embed.summary import RunSummary
from histotl.embed.telemetry import WAITING, Clock, Telemetry
from histotl.image.measures import Measures
from histotl.image.stain.base import StainNormalizer, StainTransform
from histotl.store import layout
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, is_current, open_embeddings
from histotl.store.extras import Extra
from histotl.wsi.slide import Slide
from histotl.wsi.tiles import TileReader
from histotl.wsi.tissue.base import TissueFinder

log = logging.getLogger(__name__)

SLIDES_AHEAD = 4
"""Slides that are planned while one is embedded, beside one for every planner; small ones are gone in no time."""


def embed_slides(
    slides: str | Path,
    out: str | Path,
    *,
    tiling: TileConfig = TileConfig(),  # noqa: B008 - frozen
    config: EmbedConfig = EmbedConfig(),  # noqa: B008 - frozen
    report: Report = silent,
) -> RunSummary:
    """Embed every slide with every backbone; each tile is read once.

    Files that are there and of the same identity are kept; ``out`` has TRIDENT's layout.

    Args:
        slides: A file, a folder, a glob or a manifest CSV.
        out: Output folder.
        tiling: Which tiles.
        config: Which backbones, and how.
        report: Told about progress.

    Raises:
        UsageError: A name, spec or manifest is wrong; before any slide is opened.
        SetupError: Weights or the device cannot be had; before any slide is opened, but for those that the stain
            normaliser's target names. The runtime cannot take the network; before a slide is embedded.
        SlideError: No stain can be estimated from the target that was given.
    """
    stain = cast("StainNormalizer", create("stain", config.stain))
    finder = tissue_finder(tiling)
    views = views_of(config, tiling.tile_px)
    measures = Measures.parse(config.quality)
    drop = drop_condition(config.drop, measures)
    entries = list_entries(slides, tiling)
    device = choose_device(config.device)
    readers = choose_workers(config, device)
    decoding = DecoderChoice(config.decode, device, readers)
    forwards = choose_forwards(config, device, readers)
    with compute_settings(forwards):
        plan = look_up(stain, entries, tiling, Path(out), report, choose_planners(device))
        named = identified(plan.normalizer)
        models = load_models(config, tiling.spec, stain=named, device=device)
        clock = Clock()
        engine = _Engine(
            out=Path(out),
            tiling=tiling,
            config=config,
            finder=finder,
            stain=plan,
            views=views,
            measures=measures,
            drop=drop,
            models=models,
            decoding=decoding,
            clock=clock,
        )
        layout.prepare_output(engine.out)
        layout.remove_stale_parts(engine.out)
        if not config.overwrite:
            engine.warn_of_replacement()
        return engine.run(entries, device, readers, forwards, report)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """What is the same for all slides of a run."""

    out: Path
    tiling: TileConfig
    config: EmbedConfig
    finder: TissueFinder
    stain: StainPlan
    views: Views | None
    measures: Measures
    drop: Condition | None
    models: tuple[Model, ...]
    decoding: DecoderChoice
    clock: Clock

    def run(
        self, entries: Sequence[SlideEntry], device: torch.device, readers: int, forwards: Forwards, report: Report
    ) -> RunSummary:
        """Embed all slides; those that fail are recorded and the run goes on."""
        account = Account(stage="embed", total=len(entries), out=self.out, report=report)
        telemetry: Telemetry | None = None
        dropped = 0
        try:
            if left := self._left(entries, account, choose_planners(device)):
                with self.clock.stage("build"):
                    ready = replace(self, models=made_ready(self.models, self.config))
                telemetry, dropped = ready.embed(left, account, device, readers, forwards)
        finally:
            account.write_failures()
        account.record_flags(self.tiling.spec, entries, self._fallbacks(entries))
        # All models saw the same tiles: the files of the first one say it all.
        files = (self._path(self.models[0], entry) for entry in entries if self.measures.measures)
        quality = slide_quality(path for path in files if path.is_file())
        return replace(account.summary(telemetry), quality=quality, dropped=dropped)

    def _left(self, entries: Sequence[SlideEntry], account: Account, planners: int) -> list[SlideEntry]:
        """The slides that are to be embedded; those that are finished are counted, before anything is built for them.

        Only those whose files are all there are opened for it.
        """
        there = [
            entry
            for entry in entries
            if not self.config.overwrite and all(self._path(model, entry).is_file() for model in self.models)
        ]
        finished: set[str] = set()
        with Feed[SlideEntry, SlideJob](readers=1, planners=planners, slides_ahead=2 * planners) as feed:
            for turn in feed.over(there, self._look):
                if isinstance(turn, Turn):  # there is nothing to read, so there are no batches
                    job = account.attempt([turn], turn.prepared)
                    feed.close(turn)
                    if job is not None and job.state == "current":
                        account.count(turn.item, job.state)
                    if job is None or job.state == "current":
                        finished.add(turn.item.slide_id)
        return [entry for entry in entries if entry.slide_id not in finished]

    def _look(self, entry: SlideEntry) -> SlideJob:
        """Whether a slide whose files are there is finished."""
        with self.clock.stage("plan"), ExitStack() as held:
            slide = open_entry(entry, self.tiling)
            held.callback(slide.close)
            state, _ = self._claim(entry, source_digest(slide.info, self.tiling, self.finder), held)
            return SlideJob(state=state)

    def _claim(self, entry: SlideEntry, source: str, held: ExitStack) -> tuple[State, tuple[Model, ...]]:
        return claim(
            self.models,
            lambda model: self._path(model, entry),
            lambda model: self._is_current(model, entry, source),
            held,
        )

    def embed(
        self,
        entries: Sequence[SlideEntry],
        account: Account,
        device: torch.device,
        readers: int,
        forwards: Forwards,
    ) -> tuple[Telemetry | None, int]:
        """Embed slides with models that are ready; what it took, and how many tiles were left out for their quality."""
        planners = choose_planners(device)
        accelerator = accelerator_of(device)
        side = self.tiling.tile_px
        with self.clock.stage("build"):
            batch_size, most, tuner = choose_batches(
                self.config, self.models, accelerator, side, forwards.count, lambda: self.clock.seconds[WAITING]
            )
        compute, workers = Compute(accelerator, self.clock), Workers[OnTheWay, Found](forwards)
        feed = Feed[SlideEntry, SlideJob](
            readers=readers,
            planners=planners,
            batch_size=batch_size,
            most_tiles=most,
            slides_ahead=SLIDES_AHEAD + planners,
            pin=accelerator.pinned,
            held=workers.most_on_way,
            is_busy=workers.are_busy,
        )
        with feed, workers, Filing(self.clock) as filing:
            flow = Flow(
                feed=feed,
                compute=compute,
                workers=workers,
                filing=filing,
                account=account,
                clock=self.clock,
                tuner=tuner,
                one_transform=not self.stain.needs_fit,
                views=self.views,
                figures=figures_of(self.measures, self.tiling.mpp),
            )
            flow.over(entries, self.prepare)
        if not account.n_tiles:
            return None, 0
        telemetry = measured(
            self.clock,
            self.models,
            device,
            forwards,
            wall_s=account.seconds,
            n_tiles=account.n_tiles,
            batch_size=feed.batch_size,
            readers=readers,
            planners=planners,
            decoder=self.decoding.name,
            jpeg_tiles=flow.totals.jpeg_tiles,
            fallback_tiles=flow.totals.fallback_tiles,
            mbytes_read=flow.totals.bytes_read / 1e6,
        )
        return telemetry, flow.totals.dropped

    def warn_of_replacement(self) -> None:
        """Say, before the work, that files made with other options are where the new ones go: a folder has one kind."""
        for model in self.models:
            folder = layout.features_path(self.out, self.tiling.spec, model.card, "any").parent
            for path in sorted(folder.glob("*.h5"))[:1]:
                warn_of_other_identity(path, model, self._extras, tissue=identified(self.finder))

    def prepare(self, entry: SlideEntry) -> SlideJob:
        """Open, lock, plan, fit the stain, begin the files; in a planner, while earlier slides are being embedded."""
        with self.clock.stage("plan"), ExitStack() as held:
            slide = open_entry(entry, self.tiling)
            held.callback(slide.close)
            source = source_digest(slide.info, self.tiling, self.finder)
            state, models = self._claim(entry, source, held)
            if state != "ready":
                return SlideJob(state=state)
            made = self._provenance(slide.info)
            grid = plan_slide(slide, self.tiling, self.finder, self.out, made, source)
            planned = len(grid)
            if self.drop is not None:
                grid = without_dropped(slide, grid, self.measures, self.drop)
            transform = self._fit(slide, grid)
            tiles = held.enter_context(TileReader(slide, grid, decoder=self.decoding.decoder_for(slide, grid)))
            dropped = planned - len(grid)
            made = replace(made, specs={**made.specs, "decoder": tiles.decoder, "dropped": dropped})
            files = _Files(
                info=slide.info, grid=grid, source=self._source(source), made=made, stain_state=transform.state
            )
            writers = tuple(held.enter_context(self._writer(model, entry, files)) for model in models)
            work = Work(tiles=tiles, transform=transform, models=models, writers=writers)
            return SlideJob(state=state, info=slide.info, grid=grid, work=work, dropped=dropped, held=held.pop_all())

    def _fit(self, slide: Slide, grid: TileGrid) -> StainTransform:
        side = grid.spec.tile_px
        nothing = torch.empty((0, side, side, 3), dtype=torch.uint8)
        return self.stain.fit(sample_slide(slide, grid) if self.stain.needs_fit else nothing)

    def _fallbacks(self, entries: Sequence[SlideEntry]) -> dict[str, str]:
        """What was done, and why, for slides whose stain could not be estimated, those of earlier runs too."""
        found: dict[str, str] = {}
        for entry in entries if self.stain.falls_back else ():
            path = self._path(self.models[0], entry)
            if path.is_file() and (fallen := fallen_back(open_embeddings(path).stain_state)):
                found[entry.slide_id] = fallen
        return found

    def _writer(self, model: Model, entry: SlideEntry, files: _Files) -> EmbeddingsWriter:
        meta = EmbeddingsMeta(
            identity=model.identity,
            card=model.card,
            provenance=files.made,
            slide=files.info,
            grid=files.grid,
            stain_state=files.stain_state,
            source_fingerprint=files.source,
            extras=self._extras,
        )
        path = self._path(model, entry)
        return EmbeddingsWriter(path, n=len(files.grid), dim=model.card.dim, dtype=self.config.dtype, meta=meta)

    def _path(self, model: Model, entry: SlideEntry) -> Path:
        return layout.features_path(self.out, self.tiling.spec, model.card, entry.slide_id)

    def _is_current(self, model: Model, entry: SlideEntry, source: str) -> bool:
        path = self._path(model, entry)
        return not self.config.overwrite and is_current(path, model.identity, self._source(source), self._extras)

    def _source(self, tiles: str) -> str:
        """What features come from: the tiles' own source, and which of them are left out."""
        if self.drop is None:
            return tiles
        return hashlib.sha256(f"{tiles} {self.drop.text} {self.measures.specs}".encode()).hexdigest()[:16]

    @property
    def _extras(self) -> tuple[Extra, ...]:
        """What every file has beside features."""
        return (() if self.views is None else (self.views.spec,)) + quality_extras(self.measures)

    @cached_property
    def _specs(self) -> dict[str, object]:
        return {
            "tiling": asdict(self.tiling),
            "embed": asdict(self.config),
            "backbones": [model.spec for model in self.models],
            "stain": identified(self.stain.normalizer),
            "tissue": identified(self.finder),
            **({} if self.views is None else {"augment": self.views.spec.augment}),
            "quality": list(self.measures.specs),
        }

    def _provenance(self, info: SlideInfo) -> Provenance:
        return Provenance.now(specs=self._specs, inputs={"slide": info.fingerprint})


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What all files of one slide say."""

    info: SlideInfo
    grid: TileGrid
    source: str
    made: Provenance
    stain_state: Mapping[str, object]
