"""Slides with pictures: which ones, in which order, and what is drawn."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.slides import SlideCard, slide_cards
from histotl.evaluate.source import find_source_features
from histotl.evaluate.stage import EvaluationResult
from histotl.evaluate.stage import evaluate_predictions as evaluate
from histotl.learn.predictions import read_predictions
from histotl.store.tile_scores import read_tile_scores, write_tile_scores


def _run(made: object, out: Path, **options: object) -> EvaluationResult:
    config = EvaluateConfig(**{"bootstrap": 10, **options})
    return evaluate(made.predictions, made.table, out, config=config)


def _cards(result: EvaluationResult, made: object) -> tuple[SlideCard, ...]:
    predictions = read_predictions(made.predictions)
    return slide_cards(result.evidence, predictions, find_source_features(predictions, result.evidence.config))[0]


def _picture(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def test_the_most_wrong_come_first_and_the_page_shows_them(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    names = [f"slide-{i:03d}" for i in range(30, 36)]
    embedded(made, names)
    result = _run(made, tmp_path / "out", max_slides=4)
    cards = _cards(result, made)
    assert len(cards) == 4
    wrong = {name: [] for name in names}
    for task in result.evidence.tasks:
        scale = 1.0 if task.answers.classes else task.answers.wrongness.max()
        for name, value in zip(task.answers.names, task.answers.wrongness / scale, strict=True):
            if name in wrong:
                wrong[name].append(value)
    expected = sorted(names, key=lambda name: -np.mean(wrong[name]))[:4]
    assert [card.name for card in cards] == expected
    page = result.report_html.read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 8
    assert "attention: how much each tile counts" in page
    assert "6.0 × 4.0 mm" in page
    assert "scattering" in page
    assert "224 × 224 px at 0.5 µm/px (112 µm)" in page
    assert "macenko(alpha=1.0)" in page


def test_outline_grid_and_scores_are_drawn_where_the_tissue_is(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    embedded(made, ["slide-040"])
    result = _run(made, tmp_path / "out")
    (card,) = _cards(result, made)
    overview, overlay = _picture(card.overview), _picture(card.overlays[0].picture)
    plain = np.asarray(Image.open(tmp_path / "job" / "thumbnails" / "slide-040.jpg").convert("RGB")).astype(int)
    changed = np.abs(overview - plain).max(axis=2) > 60
    assert changed[100:300, 150:400].mean() > 0.05
    assert changed[:, 560:].mean() < 0.01  # glass stays glass
    # attention peaks at 40 % of the width: yellow there, violet at the rim
    assert overlay[195:205, 235:245, 2].mean() < overlay[195:205, 95:105, 2].mean()
    assert card.n_tiles > 50


def test_flagged_slides_of_other_splits_are_shown_first_and_named(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    flagged = made.frame[made.frame["ood_flag"] & made.frame["slide_id"].str.startswith("foreign")]["slide_id"].tolist()
    embedded(made, ["slide-040", *flagged], attention=False)
    result = _run(made, tmp_path / "out", max_slides=4)
    cards = _cards(result, made)
    assert (cards[0].outside, cards[0].split, cards[0].flagged, cards[0].verdict) == (True, "ood", True, "")
    assert [card.outside for card in cards] == [True, False]
    assert cards[0].overlays[0].caption == "OOD score of each tile"
    assert "flagged as OOD" in result.report_html.read_text()


def test_a_damaged_outline_or_strange_tiles_leave_the_picture_out(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    job = embedded(made, ["slide-040", "slide-041"])
    (job / "contours_geojson" / "slide-040.geojson").write_text("{}")
    other = made.predictions / "tile_scores"
    (other / "slide-040.h5").replace(other / "slide-041.h5")
    result = _run(made, tmp_path / "out")
    cards = _cards(result, made)
    assert [card.name for card in cards] == ["slide-041"]


def test_features_of_another_identity_are_not_shown(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    embedded(made, ["slide-040"])
    path = made.predictions / "predictions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity_digest": "0123456789abcdef"}))
    result = _run(made, tmp_path / "out")
    assert result.evidence.source.backbone is None
    assert "of another identity" in result.report_html.read_text()


def test_probabilities_of_tiles_are_drawn_when_there_is_no_attention(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    embedded(made, ["slide-040"], attention=False)
    path = made.predictions / "tile_scores" / "slide-040.h5"
    scores = read_tile_scores(path)
    yes = np.linspace(0, 1, len(scores.coords_l0))
    write_tile_scores(path, scores.coords_l0, {**scores.columns, "dysplasia:yes": yes, "dysplasia:no": 1 - yes}, {})
    (card,) = _cards(_run(made, tmp_path / "out"), made)
    assert card.overlays[0].caption == f"probability of “{card.tasks[0].predicted}” (dysplasia) of each tile"


def test_without_features_the_page_says_how_to_get_pictures(study: Callable[..., object], tmp_path: Path) -> None:
    page = _run(study(n=60), tmp_path / "out", features=str(tmp_path / "gone")).report_html.read_text()
    assert "Name their folder with --features" in page
    assert "<img" not in page


def test_the_most_faithful_explanation_is_drawn(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    embedded(made, ["slide-040"])
    result = _run(made, tmp_path / "out")
    (before,) = _cards(result, made)
    assert before.overlays[0].caption == "attention: how much each tile counts in the answer"
    path = made.predictions / "tile_scores" / "slide-040.h5"
    scores = read_tile_scores(path)
    task = before.tasks[0]
    column = f"{task.task}:{task.predicted}:leave_one_out"
    values = np.linspace(-1, 1, len(scores.coords_l0))
    write_tile_scores(path, scores.coords_l0, {**scores.columns, column: values}, {})
    tested = {task.task: {"random": {}, "leave_one_out": {}, "attention": {}}}
    (made.predictions / "explanation.json").write_text(json.dumps({"faithfulness": tested}))
    (after,) = _cards(result, made)
    assert (
        after.overlays[0].caption == f"how much each tile speaks for “{task.predicted}” ({task.task}), by leave_one_out"
    )
    assert after.overlays[0].picture != before.overlays[0].picture


def test_the_attention_of_every_task_is_drawn(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    embedded(made, ["slide-040"])
    path = made.predictions / "tile_scores" / "slide-040.h5"
    scores = read_tile_scores(path)
    n = len(scores.coords_l0)
    # A task whose attention is the same everywhere has nothing to show.
    own = {"attention:dysplasia": np.arange(n), "attention:grade": np.arange(n)[::-1], "attention:lesion": np.ones(n)}
    write_tile_scores(path, scores.coords_l0, {**scores.columns, **{k: v * 1.0 for k, v in own.items()}}, {})
    result = _run(made, tmp_path / "out")
    (card,) = _cards(result, made)
    assert [overlay.caption for overlay in card.overlays] == [
        "attention: how much each tile counts in the answer",
        "attention for dysplasia: how much each tile counts in that answer",
        "attention for grade: how much each tile counts in that answer",
    ]
    assert len({overlay.picture for overlay in card.overlays}) == 3
    page = result.report_html.read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 4
    assert "<figcaption>attention for grade: how much" in page


def test_a_bag_is_shown_by_its_slides(
    study: Callable[..., object], embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = study(n=60)
    embedded(made, ["slide-a", "slide-b"])
    meta = made.predictions / "predictions.json"
    content = json.loads(meta.read_text(encoding="utf-8"))
    meta.write_text(json.dumps({**content, "members": {"slide-040": ["slide-a", "slide-b"]}}), encoding="utf-8")
    result = _run(made, tmp_path / "out")
    first, second = _cards(result, made)
    assert [(card.name, card.case) for card in (first, second)] == [("slide-a", "slide-040"), ("slide-b", "slide-040")]
    assert first.tasks == second.tasks
    assert first.tasks[0].predicted
    assert "slide-a of slide-040" in result.report_html.read_text(encoding="utf-8")
