"""What ``tile`` and ``embed`` say at the end, and what they would do."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histotl.cli._console import EXIT_OK, EXIT_SOME_FAILED, err, out, print_json, print_table
from histotl.core.registry import create
from histotl.embed.config import TileConfig

if TYPE_CHECKING:
    from histotl.embed.summary import Failure, RunSummary

_SHOWN = 20
"""Failures, and flags, that are printed; a night's run may have hundreds, and the tables have them all."""


def print_summary(summary: RunSummary, folder: Path, *, as_json: bool) -> int:
    """Print one line, and a table of the slides that failed. Exit status 1 when any did."""
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        rate = f", {summary.n_tiles / summary.seconds:.0f} tiles/s" if summary.n_tiles and summary.seconds > 0 else ""
        flagged = f", {len(summary.flagged)} flagged" if summary.flagged else ""
        busy = f", {summary.busy} left to another process" if summary.busy else ""
        dropped = f" ({summary.dropped} dropped)" if summary.dropped else ""
        out().print(
            f"{summary.done} done, {summary.skipped} already there, {len(summary.failed)} failed{flagged}{busy}; "
            f"{summary.n_tiles} tiles{dropped} in {summary.seconds:.1f} s{rate} → {folder}",
            markup=False,
        )
        _print_telemetry(summary)
        _print_quality(summary)
    for flag in summary.flagged[:_SHOWN]:
        err().print(f"flagged: {flag.message}", markup=False, style="yellow")
        err().print(f"  hint: {flag.hint}", markup=False)
    _print_rest("flags", summary.flagged, folder / "flags.csv")
    print_failures(summary.failed, folder)
    return EXIT_OK if summary.ok else EXIT_SOME_FAILED


def print_failures(failures: Sequence[Failure], folder: Path) -> None:
    """Print what failed with its cures; of very many the first, since failures.csv has them all."""
    for failure in failures[:_SHOWN]:
        err().print(f"failed: {failure.sentence}", markup=False, style="red")
        if failure.hint:
            err().print(f"  hint: {failure.hint}", markup=False)
    _print_rest("failures, with their cures", failures, folder / "failures.csv")


def _print_rest(what: str, rows: Sequence[object], path: Path) -> None:
    if len(rows) > _SHOWN:
        err().print(f"… and {len(rows) - _SHOWN} more", markup=False)
    if rows:
        err().print(f"all {what}: {path}", markup=False)


def _print_telemetry(summary: RunSummary) -> None:
    told = summary.telemetry
    if told is None:
        return
    memory = f"peak memory {told.peak_rss_mb:.0f} MB" if told.peak_rss_mb else ""
    memory += f", GPU {told.peak_gpu_mb:.0f} MB" if told.peak_gpu_mb else ""
    out().print("; ".join(text for text in (told.line, f"batches of {told.batch_size}", memory) if text), markup=False)
    if told.bottleneck:
        out().print(f"bottleneck: {told.bottleneck}", markup=False)


def _print_quality(summary: RunSummary) -> None:
    """Which share of all tiles is worth a look, and in which slides most of them are."""
    total = sum(slide.n_tiles for slide in summary.quality)
    shares = Counter[str]()
    for slide in summary.quality:
        for column, share in slide.doubtful.items():
            shares[column] += share * slide.n_tiles / total  # type: ignore[assignment]  # typed for whole numbers
    shown = ", ".join(f"{column} {share:.1%}" for column, share in shares.items() if share > 0)
    if shown:
        out().print(f"tiles worth a look: {shown}; by slide with --json, left out with train --keep", markup=False)


def print_plan(
    slides: str,
    folder: Path,
    tiling: TileConfig,
    *,
    backbones: Sequence[str] = (),
    stains: Sequence[str] = (),
    as_json: bool,
) -> int:
    """Say which slides would be worked on. Names of plug-ins are checked; nothing is opened or written."""
    from histotl.wsi.manifest import load_manifest

    create("tissue", tiling.tissue)
    for kind, specs in (("backbone", backbones), ("stain", stains)):
        for spec in specs:
            create(kind, spec)
    entries = load_manifest(slides, mpp_override=tiling.mpp_override)
    rows = [
        (entry.slide_id, str(entry.path), entry.mpp if entry.mpp is not None else "own metadata") for entry in entries
    ]
    if as_json:
        print_json([dict(zip(("slide_id", "path", "mpp"), row, strict=True)) for row in rows])
        return EXIT_OK
    print_table(["slide", "file", "mpp"], rows)
    out().print(f"{len(rows)} slides → {folder}; nothing was written", markup=False)
    return EXIT_OK
