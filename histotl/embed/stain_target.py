"""What a run's stain normaliser aims at, and what it falls back on: looked up before the first slide is embedded.

A target may be an image, a slide, a saved stain, or ``cohort``: the median over a sample of the run's own slides, so
that nobody has to choose a reference picture. Whichever it is, its numbers replace the name in the normaliser's spec,
and so in the identity of the features. The cohort's stain is kept in ``OUT/stain``: slides that are added later, and
other machines that share the folder, go to the same reference.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from histotl.core.atomic import write_text
from histotl.core.errors import HistotlError, NoTissueError, StainError, UsageError
from histotl.core.progress import Report, Step
from histotl.core.registry import identified
from histotl.core.values import SlideEntry, TileGrid
from histotl.embed._patch_set import IMAGE_SUFFIXES, Patch, read_patch
from histotl.embed._plan import lay_grid, sample_rows, tissue_finder
from histotl.embed._slides import open_entry
from histotl.embed.config import TileConfig
from histotl.image._slide_stain import SlideStain
from histotl.image._transforms import Unchanged
from histotl.image.estimate import Estimate, median, read_estimate
from histotl.image.stain.base import StainNormalizer, StainTransform, TargetedNormalizer
from histotl.store import layout
from histotl.store.hdf5 import cannot_write
from histotl.wsi.slide import Slide
from histotl.wsi.tiles import read_tiles

log = logging.getLogger(__name__)

SAMPLE_TILES = 64
"""Tiles, spread evenly over a slide, that its stain is estimated from."""

COHORT_SLIDES = 32
"""Slides, spread evenly over a run, that the cohort's stain is the median of; more hardly move it."""

COHORT_PATCHES = 256
"""The same of patch images."""

_NO_GLASS = "patches are cut from tissue: too few show glass, and whether two are of one slide is not known"
"""Why the white of patch images is 255."""

_IMAGES = IMAGE_SUFFIXES - {".tif", ".tiff"}
"""Endings of targets that are pictures; any other file is a slide."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class StainPlan:
    """A normaliser whose reference is numbers, and what happens where a slide's stain cannot be estimated.

    Args:
        normalizer: Its spec is the one that the features' identity names.
        cohort: The cohort's own stain, where that is the fallback.
        white_unknown: Why its white is 255, where that of each slide was asked for; else empty.
    """

    normalizer: StainNormalizer
    cohort: Estimate | None = None
    white_unknown: str = ""

    @property
    def needs_fit(self) -> bool:
        """Whether a sample of a slide's tiles is looked at."""
        return self.normalizer.needs_fit

    @property
    def falls_back(self) -> bool:
        """Whether a slide may be taken whose stain cannot be estimated."""
        return isinstance(self.normalizer, TargetedNormalizer) and self.normalizer.fallback != "fail"

    @property
    def of_patches(self) -> dict[str, object]:
        """What the file of a set of patches says in place of a fitted state."""
        if not self.needs_fit:
            return {}
        unknown = {"white_unknown": self.white_unknown} if self.white_unknown else {}
        return {"fitted_on": "each patch alone", **unknown}

    def fit(self, sample: torch.Tensor) -> StainTransform:
        """Fit the normaliser on uint8 RGB (n, h, w, 3), or fall back; the transform's state then gives the reason.

        Raises:
            StainError: The stain cannot be estimated, and the fallback is to fail.
            NoTissueError: Likewise, for want of stained pixels.
        """
        stain = self.normalizer
        try:
            return stain.fit(sample)
        except (StainError, NoTissueError) as error:
            if not isinstance(stain, TargetedNormalizer) or not self.falls_back:
                cure = f"{error.hint}; or let such slides pass with fallback='skip' or fallback='cohort'"
                raise type(error)(error.message, hint=cure) from error
            if self.cohort is None:
                return Unchanged(state={"fallback": "skip", "reason": error.message})
            return stain.transform(replace(self.cohort, reason=error.message))


def look_up(
    stain: StainNormalizer, entries: Sequence[SlideEntry], tiling: TileConfig, out: Path, report: Report, threads: int
) -> StainPlan:
    """The plan for a run over slides.

    Args:
        stain: As the options name it.
        entries: The slides of the run.
        tiling: Which tiles they are sampled from.
        out: Output folder; the cohort's stain is kept in it.
        report: Told about the slides of the sample.
        threads: Slides that are sampled at a time.

    Raises:
        UsageError: The target cannot be read, or is the saved stain of another method.
        SlideError: The target is a slide or an image from which no stain can be estimated.
        StainError: The stain of no slide of the sample can be estimated.
    """
    estimate = partial(_estimate_entry, stain, tiling)
    where = f"{tiling.spec.folder} {tiling.tissue}"
    return _plan(stain, partial(_cohort, entries, estimate, COHORT_SLIDES, threads, report), where, out, tiling)


def look_up_patches(stain: StainNormalizer, patches: Sequence[Patch], out: Path, report: Report) -> StainPlan:
    """The same for a set of patch images, each of which is normalised on its own, and against a white of 255."""
    unknown = ""
    if isinstance(stain, SlideStain) and stain.white == "slide":
        stain, unknown = replace(stain, white=255), _NO_GLASS

    def estimate(patch: Patch) -> Estimate:
        return cast("TargetedNormalizer", stain).estimate(torch.from_numpy(read_patch(patch)[None].copy()))

    where = hashlib.sha256("\n".join(patch.text for patch in patches).encode()).hexdigest()
    plan = _plan(stain, partial(_cohort, patches, estimate, COHORT_PATCHES, 1, report), where, out, TileConfig())
    return replace(plan, white_unknown=unknown)


def fallen_back(state: Mapping[str, object]) -> str:
    """What was done in place of normalising, and why, by a transform's state; empty where nothing was."""
    if "fallback" not in state:
        return ""
    done = "not normalised" if state["fallback"] == "skip" else "normalised as the cohort is"
    return f"{done}: {state['reason']}"


def sample_slide(slide: Slide, grid: TileGrid) -> torch.Tensor:
    """Tiles of a slide that its stain is estimated from, uint8 RGB (n, h, w, 3)."""
    return torch.from_numpy(read_tiles(slide, grid, sample_rows(len(grid), SAMPLE_TILES)))


def _plan(
    stain: StainNormalizer, cohort: Callable[[], Estimate], where: str, out: Path, tiling: TileConfig
) -> StainPlan:
    if not isinstance(stain, TargetedNormalizer):
        return StainPlan(normalizer=stain)
    falls_back = stain.fallback.startswith("cohort")
    own = _kept(stain, cohort, where, out) if falls_back or stain.target == "cohort" else None
    if stain.target:
        reference = own if own is not None and stain.target == "cohort" else _target(stain, tiling)
        if reference.method != stain.name:
            fact = f"stain target {stain.target} was saved by {reference.method}, the normaliser is {stain.name}"
            raise UsageError(fact, hint=f"give --stain \"{reference.method}(target='{stain.target}')\"")
        stain = stain.towards(reference)
    if own is None or not falls_back:
        return StainPlan(normalizer=stain)
    named = f"cohort:{hashlib.sha256(own.to_json().encode()).hexdigest()[:8]}"
    return StainPlan(normalizer=cast("StainNormalizer", replace(cast("Any", stain), fallback=named)), cohort=own)


def _target(stain: TargetedNormalizer, tiling: TileConfig) -> Estimate:
    """The stain of a file."""
    path = Path(stain.target)
    if not path.exists():
        cure = "give a slide, an image, a saved stain (OUT/stain/*.json), or 'cohort'"
        raise UsageError(f"stain target {stain.target!r} does not exist", hint=cure)
    if path.suffix.lower() == ".json":
        return read_estimate(path)
    if path.suffix.lower() in _IMAGES:
        pixels = read_patch(Patch(text=stain.target, path=path))
        return stain.estimate(torch.from_numpy(pixels[None].copy()))
    return _estimate_entry(stain, tiling, SlideEntry(path=path, slide_id=path.stem, mpp=tiling.mpp_override))


def _estimate_entry(stain: StainNormalizer, tiling: TileConfig, entry: SlideEntry) -> Estimate:
    """The stain of a slide, from tiles spread over its tissue."""
    with open_entry(entry, tiling) as slide:
        _, grid = lay_grid(slide, tiling, tissue_finder(tiling))
        return cast("TargetedNormalizer", stain).estimate(sample_slide(slide, grid))


def _cohort(
    items: Sequence[Item], estimate: Callable[[Item], Estimate], most: int, threads: int, report: Report
) -> Estimate:
    """The median over a sample; what has no stain that can be estimated does not count."""
    chosen = [items[row] for row in sample_rows(len(items), most).tolist()]

    def attempt(item: Item) -> Estimate | HistotlError:
        try:
            return estimate(item)
        except HistotlError as error:  # it is recorded when its own turn comes
            return error

    found: list[Estimate] = []
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="histotl-stain") as pool:
        for done, result in enumerate(pool.map(attempt, chosen), start=1):
            if isinstance(result, Estimate):
                found.append(result)
            else:
                log.info("not in the cohort's stain: %s", result.message)
            report(Step(stage="stain", done=done, total=len(chosen)))
    return median(found)


def _kept(stain: TargetedNormalizer, cohort: Callable[[], Estimate], where: str, out: Path) -> Estimate:
    """The cohort's stain from the output folder, estimated and put there if it is the first time."""
    settings = identified(replace(cast("Any", stain), target="", fallback="fail"))
    digest = hashlib.sha256(f"{settings} {where}".encode()).hexdigest()[:8]
    path = out / "stain" / f"{stain.name}-{digest}.json"
    if not path.exists():
        found = cohort()
        mine = path.with_name(f"{path.stem}.{os.getpid()}.part")
        try:
            layout.prepare_output(out)
            path.parent.mkdir(exist_ok=True)
            write_text(mine, found.to_json())
            try:
                os.link(mine, path)  # the first of several processes wins
            except FileExistsError:
                pass
            except OSError:
                mine.replace(path)  # a file system without links: there the last one wins
            mine.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
    return read_estimate(path)
