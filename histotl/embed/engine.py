"""Slides in, feature files out: open, plan, read, normalise, embed, file, seal.

Worker threads open and plan the coming slides and read their tiles (:mod:`histotl.embed._reading`); the main thread
takes full batches from them, normalises the stain and runs every backbone on the same tiles. A slide that fails is
recorded and the run goes on (:mod:`histotl.embed._slides`). A file with its final name is whole: it is written under a
temporary name and renamed at the end, so an interrupted run is simply started again.
"""

from __future__ import annotations

import copy
import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch

from histotl.core.device import choose_device
from histotl.core.errors import StoreError
from histotl.core.progress import Report, silent
from histotl.core.provenance import Provenance
from histotl.core.registry import canonical, create
from histotl.core.values import SlideEntry, SlideInfo
from histotl.embed._claim import claim
from histotl.embed._interrupt import unbroken
from histotl.embed._job import Plan, SlideJob
from histotl.embed._models import Model, Output, load_models
from histotl.embed._plan import plan_slide, sample_rows, source_digest, tissue_segmenter
from histotl.embed._reading import Handles, ReadAhead, Turn
from histotl.embed._slides import Advance, SlideRun, list_entries, open_entry
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.device import choose_batch_size, choose_workers, compute_settings
from histotl.embed.summary import RunSummary
from histotl.image.stain.base import StainNormalizer, StainTransform
from histotl.store import layout
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, is_current, open_embeddings
from histotl.wsi.tiles import read_tiles
from histotl.wsi.tissue.base import TissueSegmenter

log = logging.getLogger(__name__)

STAIN_SAMPLE_TILES = 64
"""Tiles, spread evenly over a slide, that its stain is estimated from."""


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
        SetupError: Weights or the device cannot be had; before any slide is opened.
    """
    stain = cast("StainNormalizer", create("stain", config.stain))
    segmenter = tissue_segmenter(tiling)
    entries = list_entries(slides, tiling)
    device = choose_device(config.device)
    workers = choose_workers(config, device)
    with compute_settings(workers):
        models = load_models(config, tiling.spec, stain=canonical(stain), device=device)
        engine = _Engine(
            out=Path(out), tiling=tiling, config=config, segmenter=segmenter, stain=stain, models=models, device=device
        )
        layout.prepare_output(engine.out)
        layout.remove_stale_parts(engine.out)
        if not config.overwrite:
            engine.warn_of_replacement()
        batch_size = choose_batch_size(config, device, tiling.tile_px)
        ahead = ReadAhead[SlideEntry, SlideJob](workers=workers, batch_size=batch_size, pin=device.type == "cuda")
        with ahead:
            run = SlideRun(
                stage="embed", prepare=engine.prepare, work=engine.embed, ahead=ahead, out=engine.out, report=report
            )
            return run.over(entries)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """The two halves of the work on one slide."""

    out: Path
    tiling: TileConfig
    config: EmbedConfig
    segmenter: TissueSegmenter
    stain: StainNormalizer
    models: tuple[Model, ...]
    device: torch.device

    def warn_of_replacement(self) -> None:
        """Say, before the work, that files made with other options are where the new ones go: a folder has one kind."""
        for model in self.models:
            folder = layout.features_path(self.out, self.tiling.spec, model.card, "any").parent
            for path in sorted(folder.glob("*.h5"))[:1]:
                try:
                    identity = open_embeddings(path).identity
                except StoreError:
                    return  # damaged: said when its slide comes
                changes = ["it is not of histotl"] if identity is None else identity.differences(model.identity)
                if changes:
                    fact = "%s has features made with other options (%s); those of the same slides are replaced. "
                    log.warning(fact + "Give another output folder to keep both", folder, "; ".join(changes))

    def prepare(self, entry: SlideEntry) -> SlideJob:
        """Open, lock, plan; in a worker thread, while earlier slides are being embedded."""
        with ExitStack() as held:
            slide = open_entry(entry, self.tiling)
            handles = Handles(partial(copy.copy, slide), slide)
            held.callback(handles.close)
            source = source_digest(slide.info, self.tiling, self.segmenter)
            state, models = claim(
                self.models,
                lambda model: self._path(model, entry),
                lambda model: self._is_current(model, entry, source),
                held,
            )
            if state != "ready":
                return SlideJob(state=state)
            made = self._provenance(slide.info)
            grid = plan_slide(slide, self.tiling, self.segmenter, self.out, made, source)
            wanted = STAIN_SAMPLE_TILES if self.stain.needs_fit else 0
            sample = read_tiles(slide, grid, sample_rows(len(grid), wanted))
            plan = Plan(
                models=models, info=slide.info, grid=grid, source=source, sample=sample, handles=handles, made=made
            )
            return SlideJob(state=state, plan=plan, held=held.pop_all())

    def embed(self, job: SlideJob, turn: Turn[SlideEntry, SlideJob], advance: Advance) -> None:
        """Normalise, embed, file; in the main thread, batch after batch."""
        if job.plan is None or job.plan.sample is None:
            return
        with torch.inference_mode(), ExitStack() as open_files:
            transform = self.stain.fit(torch.from_numpy(job.plan.sample).to(self.device))
            outputs = [self._output(model, turn.item, job.plan, transform, open_files) for model in job.plan.models]
            for rows, batch in turn.batches():
                tiles = transform(batch.to(self.device, non_blocking=True))
                for output in outputs:
                    output.put(rows, tiles)
                advance(len(rows))
            for output in outputs:
                output.seal()

    def _output(
        self, model: Model, entry: SlideEntry, plan: Plan, transform: StainTransform, open_files: ExitStack
    ) -> Output:
        meta = EmbeddingsMeta(
            identity=model.identity,
            card=model.card,
            provenance=plan.made,
            slide=plan.info,
            grid=plan.grid,
            stain_state=transform.state,
            source_fingerprint=plan.source,
        )
        with unbroken():
            writer = EmbeddingsWriter(
                self._path(model, entry), n=len(plan.grid), dim=model.card.dim, dtype=self.config.dtype, meta=meta
            )
            open_files.enter_context(writer)
        return Output(model, writer)

    def _path(self, model: Model, entry: SlideEntry) -> Path:
        return layout.features_path(self.out, self.tiling.spec, model.card, entry.slide_id)

    def _is_current(self, model: Model, entry: SlideEntry, source: str) -> bool:
        return not self.config.overwrite and is_current(self._path(model, entry), model.identity, source)

    def _provenance(self, info: SlideInfo) -> Provenance:
        specs = {
            "tiling": asdict(self.tiling),
            "embed": asdict(self.config),
            "backbones": [model.spec for model in self.models],
            "stain": canonical(self.stain),
            "tissue": canonical(self.segmenter),
        }
        return Provenance.now(specs=specs, inputs={"slide": info.fingerprint})
