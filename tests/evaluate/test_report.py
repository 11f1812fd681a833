"""The page: nothing from outside, nothing unescaped, everything there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from histotl.core.intervals import Estimate
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.report import interval, number, percent
from histotl.evaluate.stage import evaluate_predictions as evaluate

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
    """Collects tags, attributes and ids, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in {"p", "li", "td", "th", "tr"}:
            self.open.pop()
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture
def page(study: Callable[..., object], tmp_path: Path) -> tuple[str, _Page]:
    made = study(n=120, nasty=True)
    config = EvaluateConfig(bootstrap=50, title="<b>Title</b>", remark="<i>remark</i>")
    text = evaluate(made.predictions, made.table, tmp_path / "out", config=config).report_html.read_text()
    parsed = _Page()
    parsed.feed(text)
    return text, parsed


def test_nothing_is_fetched_and_nothing_runs(page: tuple[str, _Page]) -> None:
    text, parsed = page
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/jpeg;base64,"))
    assert "url(http" not in text
    assert "default-src 'none'" in text
    namespaces = set(re.findall(r'https?://[^"\s<]+', text))
    assert namespaces <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_tags_close_and_ids_are_unique(page: tuple[str, _Page]) -> None:
    _, parsed = page
    assert parsed.open == []
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {value[1:] for name, value in parsed.attributes if name in ("href", "xlink:href") and value[0] == "#"}
    assert referred <= set(ids)


def test_text_from_files_is_escaped(study: Callable[..., object], tmp_path: Path) -> None:
    """Names of sites, slides and classes come from a stranger's table; classes stand in figures too."""
    made = study(n=60)
    nasty = '<script>alert("$x^$")</script>|\n\\'
    made.labels["label"] = made.labels["label"].replace("lgin", nasty)
    made.labels["site"] = nasty
    made.labels.to_csv(made.table, index=False)
    meta_path, frame_path = made.predictions / "predictions.json", made.predictions / "predictions.csv"
    meta = json.loads(meta_path.read_text())
    meta["tasks"] = [
        {**task, "classes": [nasty.strip() if c == "lgin" else c for c in task["classes"]]} for task in meta["tasks"]
    ]
    meta_path.write_text(json.dumps({**meta, "model": nasty}))
    frame = made.frame.replace("lgin", nasty).rename(columns=lambda c: c.replace("lgin", nasty))
    frame.to_csv(frame_path, index=False)
    config = EvaluateConfig(bootstrap=20, title="<b>Title</b>", remark="<i>remark</i>", max_slides=0)
    result = evaluate(made.predictions, made.table, tmp_path / "out", config=config)
    html, markdown = result.report_html.read_text(), result.metrics_md.read_text()
    assert "&lt;script&gt;alert(" in html
    for raw in ("<script", "<b>Title", "<i>remark"):
        assert raw not in html
        assert raw not in markdown
    parsed = _Page()
    parsed.feed(html)
    assert parsed.open == []
    rows = [line for line in markdown.splitlines() if line.startswith("| &lt;script")]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {6}  # five cells, whatever the name holds


def test_page_says_what_it_should(page: tuple[str, _Page]) -> None:
    text, parsed = page
    for word in (
        *("dysplasia", "Quadratic weighted kappa", "Spearman", "Majority", "Recall of each class", "Methods"),
        *("15 bins of equal mass", "50 bootstrap resamples of patients", "id_flagged_at_95_ood_recall", "AUGRC"),
    ):
        assert word in text
    # one confusion matrix and one reliability curve a class task, a scatter, the gate, risk and coverage
    assert text.count('role="img">') >= 3 * 2 + 3
    assert parsed.tags.count("h2") == 4 + 4


def test_headings_are_words(page: tuple[str, _Page]) -> None:
    headings = re.findall(r"<th[^>]*>([^<]*)</th>", page[0])
    assert {"Known flagged, 95 % of OOD caught", "OOD missed, 95 % of known kept"} < set(headings)
    assert not [heading for heading in headings if "_" in heading]


def test_patch_sets_have_no_slide_pictures_and_say_so(study: Callable[..., object], tmp_path: Path) -> None:
    made = study(n=60, id_column="path")
    text = evaluate(
        made.predictions, made.table, tmp_path / "out", config=EvaluateConfig(bootstrap=10)
    ).report_html.read_text()
    assert "These rows are no slides" in text
    assert "30 patches of split" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (12.345, "12.35"),
        (1234.5, "1234.5"),
        (0.0, "0.000"),
        (5e-5, "5.0e-05"),
        (9e-59, "0.000"),
        (-1e-9, "0.000"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_what_is_not_there_is_a_dash() -> None:
    nothing = Estimate(value=float("nan"), low=float("nan"), high=float("nan"), resamples=0)
    assert number(float("nan")) == number(None) == interval(nothing) == percent(None) == "–"
    assert percent(0.125) == "12.5 %"
