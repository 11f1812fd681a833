"""The stage `stain`: slides in; stain.json and stain.html out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

from histotl.core.atomic import write_text
from histotl.core.device import choose_device
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance, file_digest
from histotl.core.registry import create, identified
from histotl.core.values import SlideEntry
from histotl.embed._models import load_models, made_ready
from histotl.embed._plan import tissue_finder
from histotl.embed._reading import Feed, Turn
from histotl.embed._slides import Account, list_entries
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.device import choose_forwards, choose_planners, choose_workers, compute_settings
from histotl.embed.stain_target import look_up
from histotl.embed.summary import write_failures
from histotl.evaluate.stain import gather
from histotl.evaluate.stain.bench import PLAIN, Bench, Measured
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.findings import SiteProbe, StainEvidence
from histotl.evaluate.stain.judge import load_judge
from histotl.evaluate.stain.origins import Origins, read_origins
from histotl.evaluate.stain.page import render_page
from histotl.evaluate.stain.sample import Sample, read_sample
from histotl.image.stain.base import StainNormalizer
from histotl.learn.folder import check_folder
from histotl.learn.model import WEIGHTS_NAME


@dataclass(frozen=True, kw_only=True, eq=False)
class StainResult:
    """What :func:`compare_stains` found and wrote.

    Args:
        evidence: All findings.
        json_file: Every number.
        page: The page.
    """

    evidence: StainEvidence
    json_file: Path
    page: Path


def compare_stains(
    slides: str | Path,
    out: str | Path,
    *,
    tiling: TileConfig = TileConfig(),  # noqa: B008 - frozen
    config: StainConfig = StainConfig(),  # noqa: B008 - frozen
    report: Report = silent,
) -> StainResult:
    """Measure what stain normalisers do to slides and to features, and how sturdy features are under stain jitter.

    A slide that cannot be used, or on which one of the methods fails, is listed in ``failures.csv`` and on the page;
    the others go on.

    Args:
        slides: A file, a folder, a glob or a manifest CSV.
        out: Folder for ``stain.json``, ``stain.html`` and ``failures.csv``.
        tiling: Which tiles.
        config: Options.
        report: Told about progress.

    Raises:
        UsageError: A name, spec, manifest or table is wrong; before any slide is opened.
        SetupError: Weights or the device cannot be had; likewise.
        IdentityError: The model was trained on other features than these; likewise.
    """
    out = Path(out)
    check_folder(out)
    methods = {name: cast("StainNormalizer", create("stain", name)) for name in config.stain}
    estimator = cast("StainNormalizer", create("stain", config.vectors))
    entries = list_entries(slides, tiling)
    origins = read_origins(config, [entry.slide_id for entry in entries])
    device = choose_device(config.device)
    embedding = EmbedConfig(backbone=config.backbone, device=config.device)
    account = Account(stage="stain", total=len(entries), out=out, report=report)
    forwards = choose_forwards(embedding, device, choose_workers(embedding, device), side_by_side=False)
    with compute_settings(forwards):
        planners = choose_planners(device)
        plans = {name: look_up(method, entries, tiling, out, report, planners) for name, method in methods.items()}
        models = made_ready(load_models(embedding, tiling.spec, stain="none", device=device), embedding)
        bench = Bench(
            config=config,
            methods=plans,
            estimator=estimator,
            models=models,
            judge=load_judge(config.model, models, device) if config.model else None,
            device=device,
        )
        made = _provenance(config, tiling)
        measured = _measure_all(bench, entries, tiling, account)
    report(Step(stage="stain", done=len(entries), total=len(entries), item="figures"))
    failures = (*account.summary().failed, *(failure for slide in measured for failure in slide.refused.values()))
    names = tuple(model.card.name for model in models)
    evidence = StainEvidence(
        config=config,
        tiling=tiling,
        methods={name: identified(plan.normalizer) for name, plan in plans.items()},
        backbones={model.card.name: model.spec for model in models},
        slides=measured,
        failures=tuple(sorted(failures, key=lambda failure: failure.slide_id)),
        origins=origins,
        spread=gather.plain_spread(measured, origins, config),
        spreads=tuple(gather.method_spread(method, measured, origins, config) for method in methods),
        probes=_probes(measured, names, origins, config),
        sturdiness=tuple(
            one for i, name in enumerate(names) for one in gather.sturdy(i, name, measured, origins, config)
        ),
        flips=gather.flips(measured, origins, config),
        provenance=made,
    )
    return _write(evidence, out)


def _measure_all(
    bench: Bench, entries: Sequence[SlideEntry], tiling: TileConfig, account: Account
) -> tuple[Measured, ...]:
    """Planners read the samples of the coming slides while one is measured."""
    finder, found = tissue_finder(tiling), list[Measured]()
    planners = choose_planners(bench.device)

    def prepare(entry: SlideEntry) -> Sample:
        return read_sample(entry, tiling, finder, bench.config.tiles)

    with Feed[SlideEntry, Sample](readers=1, planners=planners, slides_ahead=2 * planners) as feed:
        for turn in feed.over(entries, prepare):
            if isinstance(turn, Turn):  # samples are read when they are prepared, so there are no batches
                one = account.attempt([turn], partial(_measure, bench, turn))
                if one is not None:
                    found.append(one)
                    account.count_tiles(turn.item, one.tiles)
                    account.count(turn.item, "done")
                feed.close(turn)
    return tuple(found)


def _measure(bench: Bench, turn: Turn[SlideEntry, Sample]) -> Measured:
    return bench.measure(turn.item, turn.prepared())


def _probes(
    measured: Sequence[Measured], names: Sequence[str], origins: Origins, config: StainConfig
) -> tuple[SiteProbe, ...]:
    if not origins.asked or not measured:
        return ()
    return tuple(
        gather.probe_site(i, name, method, measured, origins, config)
        for i, name in enumerate(names)
        for method in (PLAIN, *config.stain)
    )


def _provenance(config: StainConfig, tiling: TileConfig) -> Provenance:
    files = {"sites": Path(config.sites)} if config.sites else {}
    files |= {"model": Path(config.model) / WEIGHTS_NAME} if config.model else {}
    inputs = {name: file_digest(path, whole=True) for name, path in files.items()}
    specs = {"stain": asdict(config), "tiling": asdict(tiling)}
    return Provenance.now(specs=specs, inputs=inputs)


def _write(evidence: StainEvidence, out: Path) -> StainResult:
    result = StainResult(evidence=evidence, json_file=out / "stain.json", page=out / "stain.html")
    text = json.dumps(evidence.to_dict(), indent=1, allow_nan=False, default=str, ensure_ascii=False)
    write_text(result.json_file, text + "\n")
    write_text(result.page, render_page(evidence))
    write_failures(out, evidence.failures)
    return result
