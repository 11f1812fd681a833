"""A set of patch images becomes one feature file a backbone, in the order of its manifest.

A set with holes is not the set: when one image cannot be read, all unreadable ones are listed and no file is written.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.atomic import write_text
from histotl.core.device import choose_device
from histotl.core.errors import SlideError, UsageError
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance
from histotl.core.registry import create, identified
from histotl.embed._accelerator import accelerator_of
from histotl.embed._claim import claim
from histotl.embed._compute import Change, Compute, Features, measured
from histotl.embed._filing import Filing
from histotl.embed._interrupt import unbroken
from histotl.embed._models import Model, load_models, made_ready, warn_of_other_identity
from histotl.embed._patch_set import Patch, PatchFacts, SameSize, digest_of, inspect_all, list_patches, set_name
from histotl.embed._quality import figures_of, quality_extras, slide_quality
from histotl.embed._reading import Batch, Feed, Turn
from histotl.embed._views import Views, views_of
from histotl.embed._workers import Workers
from histotl.embed.config import EmbedConfig
from histotl.embed.device import (
    Forwards,
    choose_forwards,
    choose_workers,
    compute_settings,
    fixed_batch,
    largest_batch,
)
from histotl.embed.stain_target import StainPlan, fallen_back, look_up_patches
from histotl.embed.summary import Failure, RunSummary, write_failures
from histotl.embed.telemetry import Clock, Telemetry
from histotl.image.measures import Measures
from histotl.image.stain.base import StainNormalizer
from histotl.store import layout
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, is_current
from histotl.store.extras import Extra

_TRIED_PX = 224
"""Side of the picture that an augmentation is tried on before any image is read."""

log = logging.getLogger(__name__)


def embed_patches(
    manifest: str | Path,
    out: str | Path,
    *,
    config: EmbedConfig = EmbedConfig(),  # noqa: B008 - frozen
    report: Report = silent,
) -> RunSummary:
    """Embed patch images into ``out/features_<backbone>/<name of the manifest or folder>.h5``.

    Images may differ in size: each is resized by the backbone's own preprocessing, on the device. A stain normaliser
    is fitted on every patch alone, because what a set has in common is not known, and against a white of 255, because
    patches rarely show glass; a patch that it cannot be fitted on counts as unreadable.

    Args:
        manifest: A CSV with a column ``path`` relative to its folder, or a folder of images.
        out: Output folder.
        config: Which backbones, and how.
        report: Told about progress.

    Returns:
        ``done`` or ``skipped`` is 1; or the images that failed, and nothing was written.

    Raises:
        UsageError: A name, spec or manifest is wrong.
        SetupError: Weights or the device cannot be had.
    """
    started, manifest, out = time.monotonic(), Path(manifest), Path(out)
    stain = cast("StainNormalizer", create("stain", config.stain))
    views = views_of(config, _TRIED_PX)
    if config.drop:
        cure = "leave it out here, and use train --keep on the same condition"
        raise UsageError(f"--drop {config.drop!r} does not go with patches: the set is taken as it is", hint=cure)
    measures = Measures.parse(config.quality)
    patches = list_patches(manifest)
    device = choose_device(config.device)
    workers = choose_workers(config, device)
    forwards = choose_forwards(config, device, workers)
    with compute_settings(forwards), ExitStack() as held:
        plan = look_up_patches(stain, patches, out, report)
        named = identified(plan.normalizer)
        models = load_models(config, None, stain=named, device=device)
        layout.prepare_output(out)
        layout.remove_stale_parts(out)
        facts, failed = inspect_all(patches, workers)
        run = _PatchRun(
            out=out,
            name=set_name(manifest),
            patches=patches,
            facts=facts,
            config=config,
            stain=plan,
            views=views,
            measures=measures,
            device=device,
            workers=workers,
            forwards=forwards,
            report=report,
            source=digest_of(patches, facts),
            failed=failed,
        )
        for model in () if config.overwrite else models:
            if run.path(model).is_file():
                warn_of_other_identity(run.path(model), model, run.extras)
        state, todo = ("current", ()) if failed else claim(models, run.path, run.is_current, held)
        telemetry = run.embed(todo) if state == "ready" else None
    failed = sorted(run.failed, key=lambda failure: failure.slide_id)
    write_failures(out, failed, keep=[patch.text for patch in patches] if state == "busy" else ())
    done = state == "ready" and not failed
    return RunSummary(
        done=int(done),
        skipped=int(state == "current" and not failed),
        busy=int(state == "busy"),
        failed=tuple(failed),
        n_tiles=len(patches) if done else 0,
        seconds=time.monotonic() - started,
        telemetry=telemetry if done else None,
        quality=slide_quality(path for path in [run.path(models[0])] if measures.measures and path.is_file()),
    )


@dataclass(frozen=True, kw_only=True)
class _PatchRun:
    """One set and all that its embedding needs."""

    out: Path
    name: str
    patches: Sequence[Patch]
    facts: Sequence[PatchFacts]
    config: EmbedConfig
    stain: StainPlan
    views: Views | None
    measures: Measures
    device: torch.device
    workers: int
    forwards: Forwards
    report: Report
    source: str
    failed: list[Failure] = field(default_factory=list)
    fell_back: list[tuple[str, str]] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def path(self, model: Model) -> Path:
        """Where the features of a model go."""
        return layout.patch_set_path(self.out, model.card, self.name)

    def is_current(self, model: Model) -> bool:
        """Whether the file is there and need not be made again."""
        path = self.path(model)
        return not self.config.overwrite and is_current(path, model.identity, self.source, self.extras)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What the file has beside features."""
        return (() if self.views is None else (self.views.spec,)) + quality_extras(self.measures)

    def embed(self, models: Sequence[Model]) -> Telemetry:
        """Read and embed all; seals the files only when no image failed."""
        clock, began = self.clock, time.monotonic()
        with clock.stage("build"):
            models = made_ready(models, self.config)
        accelerator = accelerator_of(self.device)
        compute, workers = Compute(accelerator, clock), Workers[_OnTheWay, list[Features]](self.forwards)
        feed = Feed[SameSize, SameSize](
            readers=self.workers, batch_size=self._batch_size(), pin=accelerator.pinned, held=workers.most_on_way
        )
        with ExitStack() as open_files, feed, workers, Filing(clock) as filing:
            writers = [self._writer(model, models, open_files) for model in models]
            puts, done = list[Future[None]](), 0

            def file_finished(*, wait_for_all: bool = False) -> None:
                nonlocal done
                for on_the_way, answer in workers.finished(wait_for_all=wait_for_all):
                    puts.extend(self._file(filing, writers, on_the_way.rows, answer()))
                    on_the_way.release()
                    done += len(on_the_way.rows)
                    self._tell(done)

            events = feed.over(self._groups(), lambda group: group)
            while (event := self._next(events, workers)) is not None:
                if isinstance(event, Turn):
                    continue  # closed with the feed: a group holds nothing
                with workers.waiting(clock):
                    rows = self._rows(event)
                release = partial(feed.release, event)
                early, late = (_nothing, release) if workers.are_beside else (release, _nothing)
                work = partial(self._compute, compute, models, rows, event.tiles, early)
                workers.begin(_OnTheWay(rows=rows, release=late), work)
                file_finished()
            file_finished(wait_for_all=True)
            compute.finish()
            for put in puts:
                put.result()
            if not self.failed:
                self._tell_fallbacks()
                filing.seal(writers).result()
        return measured(
            clock,
            models,
            self.device,
            self.forwards,
            wall_s=time.monotonic() - began,
            n_tiles=len(self.patches),
            batch_size=feed.batch_size,
            readers=self.workers,
            planners=1,
        )

    def _next(
        self,
        events: Iterator[Turn[SameSize, SameSize] | _PatchBatch],
        workers: Workers[_OnTheWay, list[Features]],
    ) -> Turn[SameSize, SameSize] | _PatchBatch | None:
        with workers.waiting(self.clock):
            return next(events, None)

    def _file(
        self, filing: Filing, writers: Sequence[EmbeddingsWriter], rows: npt.NDArray[np.int64], found: list[Features]
    ) -> list[Future[None]]:
        """Have the features of some rows written; nothing after a failure: the rest is only read, to list all."""
        puts = []
        if self.failed:
            return []
        if self.measures.measures:
            *found, figures = found
            puts += [filing.put_quality(writer, rows, figures) for writer in writers]
        for place, features in enumerate(found):
            view, model = divmod(place, len(writers))
            puts.append(filing.put(writers[model], rows, features, view=view - 1 if view else None))
        return puts

    def _batch_size(self) -> int:
        """Images of one size are few and their sizes many: no trial, as for slides, would pay."""
        largest = max(math.isqrt(f.shape[0] * f.shape[1]) for f in self.facts)
        most = largest_batch(self.config, self.device, max(1, largest), self.forwards.count)
        return most if self.config.batch_size else min(most, fixed_batch(self.device))

    def _rows(self, batch: _PatchBatch) -> npt.NDArray[np.int64]:
        """Places in the set of the patches of a batch, all read."""
        for segment in batch.segments:
            segment.is_read()
        return np.concatenate([segment.turn.item.rows[segment.rows] for segment in batch.segments])

    def _compute(
        self,
        compute: Compute,
        models: Sequence[Model],
        rows: npt.NDArray[np.int64],
        tiles: torch.Tensor,
        release: Callable[[], None],
    ) -> list[Features]:
        """Features of some rows, in any thread; none after a failure."""
        if self.failed:
            release()
            return []
        return compute.run(
            tiles,
            partial(self._normalise, rows),
            models,
            release,
            self._augments(rows),
            figures_of(self.measures, math.nan),  # nobody knows the pixel size of a patch
        )

    def _groups(self) -> list[SameSize]:
        rows: dict[tuple[int, int], list[int]] = {}
        for row, fact in enumerate(self.facts):
            rows.setdefault(fact.shape, []).append(row)
        return [
            SameSize(
                tile_shape=shape,
                rows=np.array(members, np.int64),
                patches=self.patches,
                failed=self.failed,
                clock=self.clock,
            )
            for shape, members in rows.items()
        ]

    def _normalise(self, rows: npt.NDArray[np.int64], tiles: torch.Tensor) -> torch.Tensor:
        if not self.stain.needs_fit:
            return self.stain.fit(tiles[:0])(tiles)
        normal = []
        for position, row in enumerate(rows.tolist()):
            tile = tiles[position : position + 1]
            try:
                transform = self.stain.fit(tile)
                normal.append(transform(tile))
                if fallen := fallen_back(transform.state):
                    self.fell_back.append((self.patches[row].text, fallen))
            except SlideError as error:
                patch = self.patches[row]
                self.failed.append(Failure.of(patch.text, patch.path, error))
                normal.append(tile)
        return torch.cat(normal)

    def _augments(self, rows: npt.NDArray[np.int64]) -> list[Change]:
        """What makes each view; a patch's path stands for its slide, so that another order or set changes nothing."""
        views = self.views
        if views is None:
            return []
        places = [(self.patches[row].text, range(1)) for row in rows.tolist()]
        return [views.maker(places, number) for number in range(views.count)]

    def _writer(self, model: Model, models: Sequence[Model], open_files: ExitStack) -> EmbeddingsWriter:
        specs = {
            "embed": asdict(self.config),
            "backbones": [each.spec for each in models],
            "stain": identified(self.stain.normalizer),
            **({} if self.views is None else {"augment": self.views.spec.augment}),
            "quality": list(self.measures.specs),
        }
        meta = EmbeddingsMeta(
            identity=model.identity,
            card=model.card,
            provenance=Provenance.now(specs=specs, inputs={"patches": self.source}),
            items=tuple(patch.text for patch in self.patches),
            stain_state=self.stain.of_patches,
            source_fingerprint=self.source,
            extras=self.extras,
        )
        with unbroken():
            writer = EmbeddingsWriter(
                self.path(model), n=len(self.patches), dim=model.card.dim, dtype=self.config.dtype, meta=meta
            )
            return open_files.enter_context(writer)

    def _tell_fallbacks(self) -> None:
        """List the patches whose stain could not be estimated beside the cohort's stain, and say how many they are."""
        path = self.out / "stain" / f"{self.name}-fallbacks.csv"
        if not self.fell_back:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        csv.writer(text).writerows([("patch", "what"), *sorted(self.fell_back)])
        path.parent.mkdir(exist_ok=True)
        write_text(path, text.getvalue())
        count = f"{len(self.fell_back)} of {len(self.patches)} patches"
        log.warning("%s: the stain of %s could not be estimated, see %s", self.name, count, path)

    def _tell(self, done: int) -> None:
        total = len(self.patches)
        self.report(Step(stage="embed", done=done, total=total, item=self.name, units_done=done, units="patches"))


_PatchBatch = Batch[SameSize, SameSize]


@dataclass(frozen=True, kw_only=True, eq=False)
class _OnTheWay:
    """A batch that is being computed: the places of its patches, and what gives its buffer back after that."""

    rows: npt.NDArray[np.int64]
    release: Callable[[], None]


def _nothing() -> None:
    pass
