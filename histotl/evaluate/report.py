"""The report: one static HTML page with everything inside it, and the same tables as Markdown.

The page asks nothing of a server or a network: figures are inline SVG, pictures are data URIs, there is no script, and
a content security policy forbids the rest. All text passes through Jinja's escaping: names come from strangers' files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from histotl.core.intervals import Estimate
from histotl.evaluate import figures
from histotl.evaluate.calibration import CURVE_ROWS, N_BINS
from histotl.evaluate.evidence import Evidence, plural
from histotl.evaluate.gate import GATE_LABELS
from histotl.evaluate.methods import methods_text
from histotl.evaluate.quality import quality_rows
from histotl.evaluate.results import MEANINGS, TaskResult
from histotl.evaluate.slides import SlideCard

LEADS: Final = ("c_index", "auroc_labels", "quadratic_kappa", "auroc", "mae")
"""Metric shown large at the top: the first of these that a task has; else balanced accuracy."""

_BOUNDED: Final = frozenset(MEANINGS) - {
    "mae",
    "nll",
    "grade_mae",
    "expected_grade_mae",
    "soft_brier",
    "soft_nll",
    "nll_labels",
    "width_90",
    "set_size",
    "interval_width",
}
"""Metrics that are drawn on a scale from 0 to 1."""


_GRADIENT: Final = "linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725)"
"""Colours of tile scores as :func:`histotl.wsi.preview.draw_preview` draws them, low to high."""


def render_html(evidence: Evidence, cards: tuple[SlideCard, ...], no_pictures: str) -> str:
    """The page.

    Args:
        evidence: All findings.
        cards: Slides with pictures, in the order shown.
        no_pictures: Sentence that says why there are none; shown when ``cards`` is empty.
    """
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            e=evidence,
            cards=cards,
            no_pictures=no_pictures,
            leads=[(result, lead_metric(result)) for result in evidence.tasks],
            meanings=MEANINGS,
            gate_labels=GATE_LABELS,
            bounded=_BOUNDED,
            confusion=_svg(figures.confusion_figure),
            reliability=_svg(figures.reliability_figure),
            scatter=_svg(figures.scatter_figure),
            survival=_svg(figures.survival_figure),
            gate_figure=Markup(figures.gate_figure(evidence.gate) if evidence.gate else ""),  # noqa: S704 - made by matplotlib
            risk_figure=Markup(figures.risk_coverage_figure(evidence.selective)),  # noqa: S704 - made by matplotlib
            quality=quality_rows(evidence.quality),
            methods=methods_text(evidence),
            gradient=_GRADIENT,
            n_bins=N_BINS,
            curve_rows=CURVE_ROWS,
            no_value=math.nan,
        )
    )


def environment() -> Environment:
    """Where pages are made: every text is escaped, and a name that a template misspells is an error."""
    made = Environment(
        loader=PackageLoader("histotl.evaluate", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "plural": plural,
        "number": number,
        "interval": interval,
        "percent": percent,
        "percent_interval": percent_interval,
    }
    return made


def render_markdown(evidence: Evidence) -> str:
    """Headline tables of all tasks, the recall of each class and the gate, as GitHub Markdown."""
    what = f"{evidence.n} {plural(evidence.source.row_name, evidence.n)} of split `{evidence.config.split}`"
    lines = [
        f"# {_cell(evidence.config.title)}",
        "",
        f"{what}, {evidence.units} {plural(evidence.unit_name, evidence.units)}.",
    ]
    lines += ["", _cell(evidence.config.remark)] if evidence.config.remark else []
    lines += ["", *(f"- {_cell(note)}" for note in evidence.notes)] if evidence.notes else []
    for result in evidence.tasks:
        lines += _task_lines(result, evidence.unit_name)
    if evidence.gate:
        lines += _gate_lines(evidence)
    if evidence.selective:
        rows = [
            (entry.task, entry.rows, entry.errors, _text(entry.augrc, 1000), _text(entry.auroc))
            for entry in evidence.selective
        ]
        header = ("task", "rows", "errors", "AUGRC ×1000", "AUROC for errors")
        lines += ["", "## Failure score", "", *_table(header, rows)]
    lines += ["", "## Methods", "", *(_cell(paragraph) + "\n" for paragraph in methods_text(evidence))]
    return "\n".join(lines).rstrip() + "\n"


def lead_metric(result: TaskResult) -> str:
    """Name of the metric that stands for the task at the top of the page."""
    return next((name for name in LEADS if name in result.metrics), "balanced_accuracy")


def number(value: float | None, factor: float = 1.0) -> str:
    """Three decimals, more for small values, fewer for large; 0 below a millionth, a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    value *= factor
    size = abs(value)
    decimals = 3 if size < 10 else 2 if size < 100 else 1
    if 1e-6 <= size < 0.001:
        return f"{value:.1e}"
    return f"{value if size >= 1e-6 else 0.0:.{decimals}f}"


def interval(value: Estimate, factor: float = 1.0) -> str:
    """``low – high``; a dash where there is none."""
    return "–" if math.isnan(value.low) else f"{number(value.low, factor)} – {number(value.high, factor)}"


def percent_interval(value: Estimate) -> str:
    """``low – high`` in per cent; a dash where there is none."""
    return "–" if math.isnan(value.low) else f"{100 * value.low:.1f} – {100 * value.high:.1f} %"


def percent(value: float | None) -> str:
    """A share in per cent with one decimal."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _svg(draw: Callable[[TaskResult], str]) -> Callable[[TaskResult], Markup]:
    return lambda result: Markup(draw(result))  # noqa: S704 - made by matplotlib, which escapes its text


def _task_lines(result: TaskResult, unit: str) -> list[str]:
    answers = result.answers
    size = f"{answers.kind}, {len(answers)} rows, {result.units} {plural(unit, result.units)}"
    rows = [
        (MEANINGS[name].label, number(value.value), interval(value), number(result.majority[name]))
        for name, value in result.metrics.items()
    ]
    lines = ["", f"## {_cell(answers.name)} ({size})", ""]
    if result.notes:
        lines += [*(f"- {_cell(note)}" for note in result.notes), ""]
    lines += _table(("metric", "value", "95 % interval", "majority"), rows)
    if result.recalls:
        recall = [(r.name, r.rows, r.units, number(r.recall.value), interval(r.recall)) for r in result.recalls]
        lines += ["", *_table(("class", "rows", plural(unit, 2), "recall", "95 % interval"), recall)]
    if result.labels:
        told = [
            (row.name, row.rows, row.positive, _text(row.auroc), _text(row.average_precision)) for row in result.labels
        ]
        lines += ["", *_table(("label", "rows", "positive", "AUROC", "average precision"), told)]
    return lines


def _gate_lines(evidence: Evidence) -> list[str]:
    gate = evidence.gate
    if gate is None:
        return []
    rows = [
        (s.split or "–", s.site or "–", s.rows, s.flagged, percent(s.share.value), percent_interval(s.share))
        for s in gate.shares
    ]
    lines = ["", "## OOD gate", "", *_table(("split", "site", "rows", "flagged", "share", "95 % interval"), rows)]
    for entry in gate.separation:
        named = [(GATE_LABELS[name], _text(value)) for name, value in entry.metrics.items()]
        lines += [
            "",
            f"`{entry.score}`, {gate.n_ood} OOD against {gate.n_known} known rows:",
            "",
            *_table(("reading", "value"), named),
        ]
    return lines


def _text(value: Estimate, factor: float = 1.0) -> str:
    return f"{number(value.value, factor)} ({interval(value, factor)})"


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(_cell(str(cell)) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    """Text that cannot break a table or open a tag."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
