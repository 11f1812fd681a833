"""The stain page: one static HTML page with everything inside it, made as the evaluation report is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup
from PIL import Image

from histotl.core.units import round_px
from histotl.embed.stain_target import SAMPLE_TILES
from histotl.evaluate.report import environment
from histotl.evaluate.slides import data_uri
from histotl.evaluate.stain import figures
from histotl.evaluate.stain.bench import PLAIN, Measured
from histotl.evaluate.stain.colour import LEAST_SLIDES, SPREADS
from histotl.evaluate.stain.findings import StainEvidence
from histotl.evaluate.stain.probe import FOLDS, STRENGTHS
from histotl.evaluate.stain.robustness import LOW
from histotl.evaluate.stain.vectors import Vectors

TILE_PX: Final = 128
"""Side of a tile in the page."""

_GAP_PX = 4

MOST_WITH_AFTER, MOST_LISTED = 12, 100
"""Slides up to which the table has the stain vectors after every method too, and slides in it at most."""


@dataclass(frozen=True, kw_only=True)
class TileRow:
    """Pictures of one slide: condition -> data URI of its tiles side by side, or why there is none."""

    slide_id: str
    site: str
    pictures: Mapping[str, str]
    reasons: Mapping[str, str]


def render_page(evidence: StainEvidence) -> str:
    """The page."""
    conditions = (PLAIN, *evidence.methods)
    draw = evidence.slides
    return (
        environment()
        .get_template("stain.html.j2")
        .render(
            e=evidence,
            conditions=conditions,
            condition=figures.condition,
            rows=_tile_rows(evidence, conditions),
            is_vectors=lambda found: isinstance(found, Vectors),
            colour=Markup(figures.colour_figure(evidence) if draw else ""),  # noqa: S704 - made by matplotlib
            vectors=Markup(figures.vectors_figure(evidence) if draw else ""),  # noqa: S704 - made by matplotlib
            sites=Markup(figures.site_figure(evidence.probes)),  # noqa: S704 - made by matplotlib
            jitter=Markup(figures.jitter_figure(evidence)),  # noqa: S704 - made by matplotlib
            spreads=SPREADS,
            least_slides=LEAST_SLIDES,
            most_with_after=MOST_WITH_AFTER,
            most_listed=MOST_LISTED,
            site_counts=_site_counts(evidence),
            methods=methods_text(evidence),
        )
    )


def methods_text(evidence: StainEvidence) -> tuple[str, ...]:
    """Paragraphs on how the figures were made, from the options and constants that made them."""
    config, unit = evidence.config, evidence.unit_name
    side, mpp = evidence.tiling.tile_px, evidence.tiling.mpp
    paragraphs = [
        f"Up to {config.tiles} tissue tiles of {side} × {side} px at {mpp:g} µm/px were read from each slide, spread "
        f"evenly over it. A normaliser was fitted on the {SAMPLE_TILES} tiles that embedding fits it on. A slide "
        "on which a method failed is in none of that method's figures, before or after.",
        "Colour is the mean of L*, a*, b* (CIE 1976, D65) over the pixels that were stained before normalisation. ΔE "
        "is the root mean square distance of a slide's mean colour from the mean of all slides; the others are "
        "standard deviations between slides, for optical density (natural logarithm) of its mean over R, G and B. A "
        "method that sets the mean colour itself, as Reinhard's does, brings them near 0 by construction. Stain "
        f"vectors are those that {config.vectors} estimates, before and after, whatever the method; a swatch shows "
        "light that went through one unit of a stain.",
    ]
    if any(probe.change is not None for probe in evidence.probes):
        paragraphs.append(
            f"Site AUC: a logistic regression on standardised features of tiles, classes balanced, at most {FOLDS} "
            f"folds, in which all tiles of a {unit} are held out together; its C, one of "
            f"{', '.join(map(str, STRENGTHS))}, is chosen on another fold. The AUC is the macro mean over sites of one "
            "site against the rest, over all held-out tiles. Before and after use the same slides and folds. "
            "Sites may also differ in what tissue they send, which no normalisation takes away: the fall says more "
            "than the level. The interval does not hold the chance of other folds."
        )
    if evidence.sturdiness:
        paragraphs.append(
            "Jitter scales and shifts the densities of haematoxylin, eosin and residual (Tellez 2018), all tiles of a "
            f"slide alike, {config.draws} times a slide at each strength (seed {config.seed}), without normalisation. "
            f"Cosines compare the features of each tile before and after; “low” is their {LOW:.0%} quantile. Features "
            "that share a large constant part have high cosines whatever happens, so both are given too after the "
            "mean feature vector of all tiles was taken off: compare backbones by these."
        )
    if evidence.flips:
        paragraphs.append(
            f"Flip rate: share of restained answers of the model {config.model} with another class than without "
            "jitter. The model sees the sampled tiles only, normalised as in its training, with the normaliser fitted "
            "anew on what was restained. Where nothing flipped the interval is 0 to 0, although a rate of 3 in as "
            f"many {unit}s as there are shows no flip once in twenty times."
        )
    if config.bootstrap:
        paragraphs.append(
            f"Intervals are 95 % percentile intervals over {config.bootstrap} bootstrap resamples of {unit}s (seed "
            f"{config.seed}); the value beside one is that of the real set. Changes are taken draw by draw."
        )
    return tuple(paragraphs)


def _tile_rows(evidence: StainEvidence, conditions: Sequence[str]) -> list[TileRow]:
    n, most = len(evidence.slides), evidence.config.max_slides
    chosen = [evidence.slides[i] for i in np.linspace(0, n - 1, min(n, most)).round().astype(int)] if n and most else []
    return [
        TileRow(
            slide_id=slide.slide_id,
            site=evidence.origins.sites.get(slide.slide_id, ""),
            pictures={name: _strip(slide, name) for name in conditions if name in slide.pictures},
            reasons={name: failure.message for name, failure in slide.refused.items()},
        )
        for slide in chosen
    ]


def _strip(slide: Measured, name: str) -> str:
    """A few tiles side by side on white."""
    tiles = slide.pictures[name]
    side = min(TILE_PX, tiles.shape[1])
    width = len(tiles) * side + (len(tiles) - 1) * _GAP_PX
    strip = np.full((side, width, 3), 255, dtype=np.uint8)
    for i, tile in enumerate(tiles):
        left = round_px(i * (side + _GAP_PX))
        strip[:, left : left + side] = np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.LANCZOS))
    return data_uri(strip)


def _site_counts(evidence: StainEvidence) -> list[tuple[str, int, int]]:
    """Site, its slides and their patients."""
    counts = []
    for site in figures.site_names(evidence):
        names = [s.slide_id for s in evidence.slides if evidence.origins.sites.get(s.slide_id, "") == site]
        counts.append((site, len(names), len({evidence.origins.group(name) for name in names})))
    return counts
