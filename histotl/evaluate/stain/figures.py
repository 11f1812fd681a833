"""Figures of the stain page; how they are drawn is said in :mod:`histotl.evaluate.figures`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histotl.core.intervals import Estimate
from histotl.evaluate.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, drawing, shorten, span
from histotl.evaluate.stain.bench import PLAIN
from histotl.evaluate.stain.findings import SiteProbe, StainEvidence
from histotl.evaluate.stain.vectors import Vectors

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00")
"""Of sites, backbones and tasks; what comes after the fifth is grey."""

_PANEL_IN = 2.45


def colour_figure(evidence: StainEvidence) -> str:
    """Mean colour of every slide's tissue in the plane of a* and b*, before and after each method."""
    sites = site_names(evidence)
    with drawing(_panels_size(evidence), "colour") as (figure, svg):
        for axes, name in _panels(figure, evidence):
            for site, colour in zip(sites, _cycle(len(sites)), strict=True):
                points = [
                    slide.colours[name].lab
                    for slide in evidence.slides
                    if name in slide.colours and evidence.origins.sites.get(slide.slide_id, "") == site
                ]
                _dots(axes, [(p[1], p[2]) for p in points], "o", colour)
            axes.set_xlabel("a* (green to red)")
        figure.axes[0].set_ylabel("b* (blue to yellow)")
        _legend(figure, [(shorten(site or "site unknown"), c, "o") for site, c in _named(sites)])
    return svg.text


def vectors_figure(evidence: StainEvidence) -> str:
    """Stain vectors of every slide, by the shares of red and blue in their density, before and after each method."""
    sites = site_names(evidence)
    with drawing(_panels_size(evidence), "vectors") as (figure, svg):
        for axes, name in _panels(figure, evidence):
            for site, colour in zip(sites, _cycle(len(sites)), strict=True):
                found = [
                    slide.vectors[name]
                    for slide in evidence.slides
                    if name in slide.vectors and evidence.origins.sites.get(slide.slide_id, "") == site
                ]
                for which, marker in enumerate("o^"):
                    _dots(axes, [_shares(v, which) for v in found if isinstance(v, Vectors)], marker, colour)
            axes.set_xlabel("share of red in density")
        figure.axes[0].set_ylabel("share of blue in density")
        kinds = [("haematoxylin", GREY, "o"), ("eosin", GREY, "^")]
        _legend(figure, kinds + [(shorten(site), c, "s") for site, c in _named(sites)])
    return svg.text


def site_figure(probes: Sequence[SiteProbe]) -> str:
    """Site AUC with intervals, one row a backbone and method; dashed where the site cannot be told."""
    rows = [probe for probe in probes if probe.change is not None]
    if not rows:
        return ""
    with drawing((6.6, 0.75 + 0.3 * len(rows)), "sites") as (figure, svg):
        axes = figure.add_subplot()
        backbones = list(dict.fromkeys(row.backbone for row in rows))
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for y, row in enumerate(rows):
            value = row.change.after if row.change is not None else _NONE
            colour = COLOURS[backbones.index(row.backbone) % len(COLOURS)]
            axes.hlines(y, *span(value), color=colour, linewidth=4, alpha=0.35)
            filled = colour if row.method == PLAIN else "white"
            axes.plot(value.value, y, "o", color=colour, markerfacecolor=filled, markersize=6)
        names = [f"{shorten(row.backbone.split('(')[0], 24)}, {condition(row.method)}" for row in rows]
        axes.set_yticks(range(len(rows)), names, parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        lowest = min(span(row.change.after)[0] for row in rows if row.change is not None)
        axes.set_xlim(min(0.4, lowest - 0.02), 1.02)
        axes.set_xlabel("site AUC on held-out slides (0.5: the site cannot be told)")
    return svg.text


def jitter_figure(evidence: StainEvidence) -> str:
    """Cosine of features and flip rate of answers against the strength of the jitter."""
    if not evidence.sturdiness:
        return ""
    panels = 3 if evidence.flips else 2
    with drawing((3.05 * panels, 3.0), "jitter") as (figure, svg):
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for place, (mean, low, label) in enumerate(_COSINES):
            for i, name in enumerate(evidence.backbones):
                rows = [row for row in evidence.sturdiness if row.backbone == name]
                x = [row.strength for row in rows]
                _line(axes[place], x, [getattr(row, mean) for row in rows], COLOURS[i % len(COLOURS)], "-")
                _line(axes[place], x, [getattr(row, low) for row in rows], COLOURS[i % len(COLOURS)], "--")
            axes[place].set_ylabel(label)
            low = axes[place].get_ylim()[0]
            axes[place].set_ylim(low, 1 + 0.04 * (1 - low))
        answered = list(dict.fromkeys((flip.task, flip.unit) for flip in evidence.flips))
        for i, key in enumerate(answered):
            rates = [flip for flip in evidence.flips if (flip.task, flip.unit) == key]
            colour = COLOURS[-1 - i % len(COLOURS)]
            _line(axes[-1], [flip.strength for flip in rates], [flip.rate for flip in rates], colour, "-")
            axes[-1].lines[-1].set_label(f"{shorten(key[0], 14)} of a {key[1]}")
        if answered:
            axes[-1].set_ylabel("answers that flip")
            axes[-1].set_ylim(-0.01, max(0.1, *(span(flip.rate)[1] * 1.05 for flip in evidence.flips)))
            _plain_text(axes[-1].legend(loc="upper left"))
        for one in axes:
            one.set_xlabel("jitter (sigma = bias)")
        names = [(shorten(name, 24), COLOURS[i % len(COLOURS)]) for i, name in enumerate(evidence.backbones)]
        handles = [axes[0].plot([], [], color=colour, label=name)[0] for name, colour in names]
        handles += [axes[0].plot([], [], color=GREY, linestyle=s, label=n)[0] for s, n in _STYLES]
        _plain_text(figure.legend(handles=handles, loc="outside upper left", ncols=5))
    return svg.text


def site_names(evidence: StainEvidence) -> list[str]:
    """Sites of the slides in order; slides without one have the empty name, which comes last."""
    found = {evidence.origins.sites.get(slide.slide_id, "") for slide in evidence.slides}
    return sorted(found, key=lambda site: (not site, site))


def condition(method: str) -> str:
    """What a column is called on the page."""
    return method if method != PLAIN else "as scanned"


_NONE = Estimate(value=np.nan, low=np.nan, high=np.nan, resamples=0)
_COSINES = (("cosine", "low", "cosine of features"), ("centred", "centred_low", "cosine, mean taken off"))
_STYLES = (("-", "mean of tiles"), ("--", "5th percentile"))


def _panels_size(evidence: StainEvidence) -> tuple[float, float]:
    return (0.5 + _PANEL_IN * (1 + len(evidence.methods)), 2.95)


def _panels(figure: Figure, evidence: StainEvidence) -> Iterator[tuple[Axes, str]]:
    """One panel a condition, all with the same axes."""
    names = (PLAIN, *evidence.methods)
    for axes, name in zip(
        figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0], names, strict=True
    ):
        axes.set_title(shorten(condition(name), 26), fontsize=10, color=INK, parse_math=False)
        yield axes, name


def _dots(axes: Axes, points: Sequence[tuple[float, float]], marker: str, colour: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker, color=colour, markersize=4.5, alpha=0.75, markeredgewidth=0)


def _line(axes: Axes, x: Sequence[float], values: Sequence[Estimate], colour: str, style: str) -> None:
    low, high = zip(*(span(value) for value in values), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(x, [value.value for value in values], style, color=colour, marker="o", markersize=3.5, linewidth=1.3)


def _shares(found: Vectors, which: int) -> tuple[float, float]:
    red, green, blue = found.stains[which]
    return red / (red + green + blue), blue / (red + green + blue)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i] if i < len(COLOURS) else GREY for i in range(count)]


def _named(sites: Sequence[str]) -> list[tuple[str, str]]:
    """Sites with their colours, for a legend; one for the sites that are grey."""
    if len(sites) <= len(COLOURS):
        return [(site, colour) for site, colour in zip(sites, COLOURS, strict=False) if site]
    return [*zip(sites[: len(COLOURS)], COLOURS, strict=True), ("other sites", GREY)]


def _legend(figure: Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    handles = [
        figure.axes[0].plot([], [], marker, color=colour, markersize=5, label=name)[0]
        for name, colour, marker in entries
    ]
    if handles:
        _plain_text(figure.legend(handles=handles, loc="outside upper left", ncols=7, columnspacing=1.2))


def _plain_text(legend: object) -> None:
    """Names in a legend are text, not formulas."""
    for text in legend.get_texts():  # type: ignore[attr-defined]
        text.set_parse_math(False)
