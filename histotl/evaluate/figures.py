"""Figures as inline SVG: same input, same bytes; text stays text; colours that colour-blind readers can tell apart.

Only matplotlib's object interface is used: no global state, no window. Names come from strangers' files: matplotlib
escapes them, formulas are not parsed in them, and long ones are cut.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from histotl.core.intervals import Estimate
from histotl.evaluate.gate import Gate, Selective
from histotl.evaluate.results import ReliabilityBin, TaskResult
from histotl.learn.concordance import kaplan_meier

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA3377", "#8A94A0", "#1F2933"
"""Okabe and Ito (2008), with greys of the page."""

_STYLE = {
    "svg.hashsalt": "histotl",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": "#B8C0CA",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#52606D",
    "ytick.color": "#52606D",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def confusion_figure(result: TaskResult) -> str:
    """Counts, shaded by the share of the true class, so that columns of a rare class are readable too."""
    if result.confusion is None:
        return ""
    counts, names = result.confusion, [shorten(name) for name in result.answers.classes]
    k = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.5 + 0.52 * max(k, 3)
    with drawing((side + 0.5, side), f"confusion-{result.answers.name}") as (figure, svg):
        axes = figure.add_subplot()
        edges = np.arange(k + 1) - 0.5
        axes.pcolormesh(edges, edges, share, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=2)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        turned = k > 2 or max(map(len, names)) > 8
        axes.set_xticks(
            range(k), names, rotation=35 if turned else 0, ha="right" if turned else "center", parse_math=False
        )
        axes.set_yticks(range(k), names, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for i in range(k):
            for j in range(k):
                shade = "white" if share[i, j] > 0.55 else INK
                axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=shade, fontsize=10)
    return svg.text


def reliability_figure(result: TaskResult) -> str:
    """Share right against stated confidence, with intervals; before calibration in grey where known."""
    if not result.reliability:
        return ""
    with drawing((3.9, 3.4), f"reliability-{result.answers.name}") as (figure, svg):
        axes = figure.add_subplot()
        lowest = min(b.confidence for b in (*result.reliability, *result.reliability_before))
        start = max(0.0, np.floor(lowest * 10) / 10 - 0.05)
        axes.plot([start, 1], [start, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
        if result.reliability_before:
            _reliability_line(axes, result.reliability_before, GREY, "before calibration", marker="s")
        _reliability_line(axes, result.reliability, BLUE, "as predicted", marker="o")
        axes.set_xlim(start, 1.01)
        axes.set_ylim(-0.02, 1.03)
        axes.set_xlabel("confidence (largest probability)")
        axes.set_ylabel("share right")
        axes.legend(loc="lower right")
    return svg.text


def _reliability_line(axes: Axes, bins: Sequence[ReliabilityBin], colour: str, label: str, *, marker: str) -> None:
    x, y = [b.confidence for b in bins], [b.correct.value for b in bins]
    low, high = zip(*(span(b.correct) for b in bins), strict=True)
    axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.35)
    axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.45)
    axes.plot(x, y, color=colour, linewidth=0, marker=marker, markersize=4.5, label=label)


def scatter_figure(result: TaskResult) -> str:
    """Predicted against true value."""
    truth, predicted = result.answers.truth, result.answers.predicted
    with drawing((3.9, 3.6), f"scatter-{result.answers.name}") as (figure, svg):
        axes = figure.add_subplot()
        ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
        pad = 0.04 * (ends[1] - ends[0]) or 1.0
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        # Thousands of vector points make a page slow: one path of many markers, thinned evenly.
        shown = np.linspace(0, len(truth) - 1, min(len(truth), 2000)).astype(int)
        alpha = 0.7 if len(shown) < 300 else 0.35
        axes.plot(truth[shown], predicted[shown], "o", color=BLUE, markersize=4, alpha=alpha, markeredgewidth=0)
        axes.set_xlim(ends[0] - pad, ends[1] + pad)
        axes.set_ylim(ends[0] - pad, ends[1] + pad)
        axes.set_xlabel("truth")
        axes.set_ylabel("predicted")
    return svg.text


def survival_figure(result: TaskResult) -> str:
    """Share without the event over time (Kaplan-Meier) of the halves of lower and higher risk."""
    answers = result.answers
    if answers.event is None:
        return ""
    high = answers.predicted > np.median(answers.predicted)
    with drawing((4.6, 3.2), f"survival-{answers.name}") as (figure, svg):
        axes = figure.add_subplot()
        for rows, color, name in ((~high, BLUE, "lower risk"), (high, ORANGE, "higher risk")):
            if rows.any():
                at, share = kaplan_meier(answers.truth[rows], answers.event[rows])
                steps = np.concatenate([[0.0], at]), np.concatenate([[1.0], share])
                axes.step(*steps, where="post", color=color, label=f"{name} ({int(rows.sum())})")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.set_xlabel("time")
        axes.set_ylabel("without the event")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return svg.text


def gate_figure(gate: Gate) -> str:
    """Histograms of the OOD score: evaluated split and marked OOD rows, with the smallest flagged score."""
    scores = np.concatenate([gate.known_scores, gate.ood_scores])
    if not len(scores):
        return ""
    with drawing((6.6, 2.7), "gate") as (figure, svg):
        axes = figure.add_subplot()
        edges = np.histogram_bin_edges(scores, bins=min(40, max(10, len(scores) // 3))).tolist()
        axes.hist(gate.known_scores, edges, color=BLUE, alpha=0.65, label="evaluated split")
        if len(gate.ood_scores):
            axes.hist(gate.ood_scores, edges, color=ORANGE, alpha=0.7, label="marked OOD")
        if gate.flagged:
            least = min(row.score for row in gate.flagged)
            axes.axvline(least, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="least flagged score")
        axes.set_xlabel("OOD score (higher: less like the training data)")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return svg.text


def risk_coverage_figure(entries: Sequence[Selective]) -> str:
    """Share wrong among the accepted rows, as more are accepted in order of the failure score."""
    if not entries:
        return ""
    with drawing((6.6, 2.7), "risk-coverage") as (figure, svg):
        axes = figure.add_subplot()
        colours = (BLUE, ORANGE, GREEN, PURPLE, GREY)
        for i, entry in enumerate(entries):
            line = ("-", "--", ":", "-.")[i % 4]
            (drawn,) = axes.step(entry.coverage, entry.risk, where="post", color=colours[i % 5], linestyle=line)
            drawn.set_label(shorten(entry.task))
        axes.set_xlim(0, 1.005)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("coverage: share of rows accepted, least doubtful first")
        axes.set_ylabel("share wrong")
        for text in axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2).get_texts():
            text.set_parse_math(False)
    return svg.text


def shorten(name: str, limit: int = 18) -> str:
    """A name that fits a tick: one line, at most ``limit`` characters."""
    line = " ".join(name.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


class Drawn:
    """Receives the SVG text when the drawing is closed."""

    text = ""


@contextmanager
def drawing(size_in: tuple[float, float], name: str) -> Iterator[tuple[Figure, Drawn]]:
    """Draw on the figure inside the block; after it, the other value's ``text`` is the SVG element.

    Args:
        size_in: Width and height in inches.
        name: Tells its ids from those of other figures on the page.
    """
    drawn = Drawn()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=size_in, layout="constrained")
        yield figure, drawn
        buffer = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    drawn.text = _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The ``svg`` element alone: own ids (several figures share a page), the page's font, scaled by the page."""
    body = svg[svg.index("<svg") :]
    prefix = "f" + re.sub(r"[^A-Za-z0-9]", "-", name)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(url\(#|xlink:href="#)', rf"\1{prefix}-", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", body)  # older matplotlib writes it in one
    body = re.sub(r"font-family: [^;\"]+; ?", "", body)
    head, _, rest = body.partition(">")
    width = re.search(r'width="([\d.]+)pt"', head)
    points = float(width.group(1)) if width else 300.0
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    return f'{head} style="width:{points * 4 / 3:.0f}px;max-width:100%" role="img">{rest.strip()}'


def span(value: Estimate) -> tuple[float, float]:
    """Interval, or the value itself where there is none."""
    return (value.value, value.value) if np.isnan(value.low) else (value.low, value.high)
