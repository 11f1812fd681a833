"""From what was measured on every slide to the figures of the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from histotl.core.intervals import Estimate, Resamples, estimate
from histotl.evaluate.stain.bench import PLAIN, Measured
from histotl.evaluate.stain.colour import LEAST_SLIDES, Change, spread
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.findings import MethodSpread, SiteProbe
from histotl.evaluate.stain.origins import Origins
from histotl.evaluate.stain.probe import held_out_scores, plan_folds, site_auc
from histotl.evaluate.stain.robustness import FlipRate, Sturdiness, flip_rates, sturdiness


def plain_spread(slides: Sequence[Measured], origins: Origins, config: StainConfig) -> dict[str, Estimate]:
    """Spread of colour without normalisation; empty with too few slides."""
    if len(slides) < LEAST_SLIDES:
        return {}
    draws = spread([slide.colours[PLAIN] for slide in slides], _resamples(slides, origins, config))
    return {name: estimate(values) for name, values in draws.items()}


def method_spread(method: str, slides: Sequence[Measured], origins: Origins, config: StainConfig) -> MethodSpread:
    """Spread of colour before and after one method."""
    kept = [slide for slide in slides if method in slide.colours]
    if len(kept) < LEAST_SLIDES:
        return MethodSpread(method=method, slides=len(kept), spreads={})
    resamples = _resamples(kept, origins, config)
    before, after = (spread([slide.colours[name] for slide in kept], resamples) for name in (PLAIN, method))
    changes = {name: Change.of(before[name], after[name]) for name in before}
    return MethodSpread(method=method, slides=len(kept), spreads=changes)


def probe_site(
    backbone: int, name: str, method: str, slides: Sequence[Measured], origins: Origins, config: StainConfig
) -> SiteProbe:
    """Site AUC without and with one method, on the same slides and folds.

    Args:
        backbone: Its index.
        name: On its card.
        method: Name as given; empty: no method, all slides.
        slides: What was measured.
        origins: Sites and patients.
        config: Options.
    """
    fitted = [slide for slide in slides if (backbone, method) in slide.features]
    plan = plan_folds(
        [origins.sites.get(slide.slide_id, "") for slide in fitted],
        [origins.group(slide.slide_id) for slide in fitted],
        unit_name="patient" if origins.by_patient else "slide",
        seed=config.seed,
    )
    chosen = np.flatnonzero(plan.site >= 0)
    kept = [fitted[i] for i in chosen]
    n_tiles = sum(slide.tiles for slide in kept)
    change = None
    if not plan.reason:
        place = np.repeat(np.arange(len(kept)), [slide.tiles for slide in kept])
        site, fold = plan.site[chosen][place], plan.fold[chosen][place]
        of_slides = _resamples(kept, origins, config)
        resamples = Resamples(unit=of_slides.unit[place], weights=of_slides.weights)

        def auc(which: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
            features = np.concatenate([slide.features[backbone, which] for slide in kept]).astype(np.float64)
            return site_auc(held_out_scores(features, site, fold), site, resamples)

        before = auc(PLAIN)
        change = Change.of(before, before if method == PLAIN else auc(method))
    return SiteProbe(
        backbone=name,
        method=method,
        slides=len(kept),
        tiles=n_tiles,
        change=change,
        reason=plan.reason,
        notes=plan.notes if method == PLAIN else (),
    )


def sturdy(
    backbone: int, name: str, slides: Sequence[Measured], origins: Origins, config: StainConfig
) -> tuple[Sturdiness, ...]:
    """Cosines of one backbone at every strength of jitter."""
    if not slides or not config.draws:
        return ()
    resamples = _resamples(slides, origins, config)
    plain = [slide.features[backbone, PLAIN] for slide in slides]
    return tuple(
        sturdiness(
            name,
            strength,
            plain,
            [[slide.jittered[backbone, strength, draw] for draw in range(config.draws)] for slide in slides],
            resamples,
        )
        for strength in config.jitter
    )


def flips(slides: Sequence[Measured], origins: Origins, config: StainConfig) -> tuple[FlipRate, ...]:
    """Flip rates of the model's answers on the slides that it could answer for."""
    judged: list[tuple[Measured, Mapping[tuple[str, str], np.ndarray[tuple[int, ...], np.dtype[np.int64]]]]]
    judged = [(slide, slide.answers) for slide in slides if slide.answers is not None]
    if not judged:
        return ()
    kept = [slide for slide, _ in judged]
    resamples = _resamples(kept, origins, config)
    return flip_rates([answers for _, answers in judged], [slide.jittered_answers for slide in kept], resamples)


def _resamples(slides: Sequence[Measured], origins: Origins, config: StainConfig) -> Resamples:
    """Draws of the patients (or slides); one row a slide."""
    groups = np.array([origins.group(slide.slide_id) for slide in slides])
    unit = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return Resamples.draw(unit, config.bootstrap, config.seed)
