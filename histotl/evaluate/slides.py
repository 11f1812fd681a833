"""Slides with pictures for the report: thumbnail with tissue and tiles, score of each tile, truth beside prediction."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from histotl.core.errors import StoreError
from histotl.core.units import round_px
from histotl.core.values import TileGrid, TileSpec
from histotl.evaluate.evidence import Evidence
from histotl.evaluate.metrics import Floats
from histotl.evaluate.results import Answers
from histotl.evaluate.source import Features
from histotl.learn.columns import probability_column
from histotl.learn.labels import NO_LABEL, SEPARATOR
from histotl.learn.predictions import EXPLANATION_NAME, Predictions
from histotl.learn.readout import EXPECTED, RANDOM
from histotl.store.coords import CoordsFile, read_coords
from histotl.store.layout import geojson_path, thumbnail_path
from histotl.store.tile_scores import read_tile_scores
from histotl.wsi.mask import Polygon
from histotl.wsi.preview import draw_preview

PICTURE_PX: Final = 900
"""Longest side of a picture in the page."""

_OWN: Final = "attention for {}: how much each tile counts in that answer"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CardTask:
    """One answer on a card: names of truth and prediction, and the probabilities of both (NaN for values)."""

    task: str
    truth: str
    predicted: str
    stated: float
    of_truth: float
    right: bool | None


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Scores of a slide's tiles as a picture: its data URI, and what the scores are."""

    picture: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class SlideCard:
    """One slide of the report.

    Args:
        name: Slide id.
        case: The bag of slides that got the answers; empty where each slide got its own.
        split: Its split.
        outside: It is not of the evaluated split, and shown because the gate flagged it.
        flagged: By the gate.
        tasks: Answers.
        overview: Data URI of the thumbnail with outline and tiles.
        overlays: Pictures of the tile scores: the most telling one, then the attention of each task that has its own.
        n_tiles: Tiles.
        size_mm: Width × height in words; empty when the pixel size is unknown.
    """

    name: str
    split: str
    outside: bool
    flagged: bool
    tasks: tuple[CardTask, ...]
    case: str = ""
    overview: str = ""
    overlays: tuple[Overlay, ...] = ()
    n_tiles: int = 0
    size_mm: str = ""

    @property
    def verdict(self) -> str:
        """``wrong`` if any labelled class is wrong, ``right`` if all are right, empty without labels."""
        known = [task.right for task in self.tasks if task.right is not None]
        return "" if not known else "right" if all(known) else "wrong"


def slide_cards(evidence: Evidence, predictions: Predictions, features: Features) -> tuple[tuple[SlideCard, ...], str]:
    """Cards of the slides that are worth looking at, and the sentence to show when there are none.

    Args:
        evidence: All findings.
        predictions: With their tile scores.
        features: What they were made from; the thumbnails lie beside them.
    """
    members = predictions.members
    if predictions.id_column != "slide_id" and not members:
        return (), "These rows are no slides, so there are no pictures of slides."
    if not evidence.config.max_slides:
        return (), "No pictures were asked for."
    if features.problem:
        return (), f"Without the features there are no pictures: {features.problem}. Name their folder with --features."
    cards: list[SlideCard] = []
    for card in _slides_of(_candidates(evidence, predictions), members):
        if len(cards) == evidence.config.max_slides:
            break
        drawn = _with_pictures(card, features.files.get(card.name), predictions)
        if drawn is not None:
            cards.append(drawn)
    return tuple(cards), "No thumbnails of these slides lie beside their features."


def _slides_of(cards: Sequence[SlideCard], members: Mapping[str, Sequence[str]]) -> Iterator[SlideCard]:
    """The same, with a card for every slide of a bag."""
    for card in cards:
        for slide_id in members.get(card.name, ()):
            yield replace(card, name=slide_id, case=card.name)
        if card.name not in members:
            yield card


def _candidates(evidence: Evidence, predictions: Predictions) -> list[SlideCard]:
    """Flagged slides outside of the split (a quarter of the places at most), then the split's, most wrong first."""
    flagged = {row.name: row for row in evidence.gate.flagged} if evidence.gate else {}
    doubt: dict[str, list[float]] = {}
    for result in evidence.tasks:
        wrongness = result.answers.wrongness
        scale = 1.0 if result.confusion is not None else max(float(wrongness.max()), 1e-12)
        for name, value in zip(result.answers.names, wrongness / scale, strict=True):
            doubt.setdefault(name, []).append(float(value))
    ranked = sorted(doubt, key=lambda name: (-float(np.mean(doubt[name])), name))
    outside = [row for row in flagged.values() if row.name not in doubt and row.split != evidence.config.split]
    rows = {str(row[predictions.id_column]): row for row in predictions.frame.to_dict("records")}
    cards = []
    for name in [row.name for row in outside[: evidence.config.max_slides // 4]] + ranked:
        split = flagged[name].split if name in flagged else evidence.config.split
        tasks = tuple(_card_task(task.name, evidence, predictions, rows[name], name) for task in predictions.tasks)
        cards.append(SlideCard(name=name, split=split, outside=name not in doubt, flagged=name in flagged, tasks=tasks))
    return cards


def _card_task(
    task_name: str, evidence: Evidence, predictions: Predictions, row: Mapping[Hashable, object], name: str
) -> CardTask:
    task = next(task for task in predictions.tasks if task.name == task_name)
    answers = next((r.answers for r in evidence.tasks if r.answers.name == task_name), None)
    at = _place(answers, name)
    if not task.is_classification:
        truth = "" if answers is None or at is None else _truth(answers, at)
        value = str(row[task.name]) if task.classes else f"{float(str(row[task.name])):.4g}"
        return CardTask(task=task.name, truth=truth, predicted=value, stated=np.nan, of_truth=np.nan, right=None)
    predicted = str(row[task.name])
    stated = float(str(row[probability_column(task, predicted)]))
    if answers is None or at is None:
        return CardTask(task=task.name, truth="", predicted=predicted, stated=stated, of_truth=np.nan, right=None)
    truth = task.classes[int(answers.truth[at])]
    of_truth = float(str(row[probability_column(task, truth)]))
    return CardTask(
        task=task.name, truth=truth, predicted=predicted, stated=stated, of_truth=of_truth, right=truth == predicted
    )


def _truth(answers: Answers, at: int) -> str:
    """The label of a row of a task without classes; a time without the event has a +, an unknown label a ?."""
    if answers.answers == "labels":
        marks = zip(answers.classes, answers.truth[at], strict=True)
        return SEPARATOR.join(f"{name}{'?' if np.isnan(y) else ''}" for name, y in marks if y != 0) or NO_LABEL
    seen = answers.event is None or bool(answers.event[at])
    return f"{answers.truth[at]:.4g}{'' if seen else '+'}"


def _place(answers: Answers | None, name: str) -> int | None:
    if answers is None or name not in answers.names:
        return None
    return answers.names.index(name)


def _with_pictures(card: SlideCard, features: Path | None, predictions: Predictions) -> SlideCard | None:
    """The card with its pictures; None when the slide has no thumbnail or its tiles are unknown."""
    out = _out_folder(features) if features else None
    if features is None or out is None:
        return None
    thumbnail = thumbnail_path(out, card.name)
    coords_file = features.parent.parent / "patches" / f"{card.name}_patches.h5"
    if not thumbnail.is_file() or not coords_file.is_file():
        return None
    try:
        coords, polygons = read_coords(coords_file), _polygons(geojson_path(out, card.name))
    except StoreError as error:
        _log.warning("no picture of %s: %s", card.name, error.message)
        return None
    if not coords.level0_width or not coords.level0_height or coords.footprint_l0 is None:
        return None
    image = _load(thumbnail)
    scale_l0 = (coords.level0_width / image.shape[1], coords.level0_height / image.shape[0])
    grid = _grid(coords, coords.footprint_l0)
    overview = draw_preview(image, scale_l0=scale_l0, polygons=polygons, grid=grid)
    overlays = [
        Overlay(
            picture=data_uri(draw_preview(image, scale_l0=scale_l0, polygons=polygons, grid=grid, values=values)),
            caption=caption,
        )
        for caption, values in _tile_values(card, coords, predictions)
    ]
    return replace(
        card,
        overview=data_uri(overview),
        overlays=tuple(overlays),
        n_tiles=len(grid),
        size_mm=_size_mm(coords),
    )


def _out_folder(features: Path) -> Path | None:
    """The job folder that a features file belongs to: the nearest one above with thumbnails."""
    return next((folder for folder in list(features.parents)[:4] if (folder / "thumbnails").is_dir()), None)


def _load(path: Path) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    factor = PICTURE_PX / max(image.size)
    if factor < 1:
        size = (max(1, round_px(image.width * factor)), max(1, round_px(image.height * factor)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image)


def _polygons(path: Path) -> tuple[Polygon, ...]:
    """Outlines of a GeoJSON file in level-0 pixels; none when there is no file."""
    if not path.is_file():
        return ()
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        rings = [feature["geometry"]["coordinates"] for feature in features if feature["geometry"]["type"] == "Polygon"]
        return tuple(
            Polygon(exterior=_ring(polygon[0]), holes=tuple(_ring(hole) for hole in polygon[1:])) for polygon in rings
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path} is no outline: {error}", hint="run histotl tile again") from error


def _ring(points: Sequence[Sequence[float]]) -> Floats:
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _grid(coords: CoordsFile, footprint_l0: tuple[float, float]) -> TileGrid:
    """The tiles for drawing; what the drawing does not need is filled with neutral values."""
    n = len(coords.coords_l0)
    fraction = np.ones(n, dtype=np.float32) if coords.tissue_fraction is None else coords.tissue_fraction
    return TileGrid(
        spec=TileSpec(), coords_l0=coords.coords_l0, footprint_l0=footprint_l0, read_level=0, tissue_fraction=fraction
    )


def _tile_values(card: SlideCard, coords: CoordsFile, predictions: Predictions) -> list[tuple[str, Floats]]:
    """Captions and values of the tiles: the most telling score that differs between them, and each task's attention."""
    path = predictions.tile_scores(card.name)
    if path is None:
        return []
    scores = read_tile_scores(path)
    if not np.array_equal(scores.coords_l0, coords.coords_l0):
        _log.warning("tile scores of %s are of other tiles than its features; not drawn", card.name)
        return []

    def telling(columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Floats]]:
        for column, caption in columns:
            values = scores.columns.get(column)
            if values is not None and np.isfinite(values).all() and np.ptp(values) > 0:
                yield caption, values.astype(np.float64)

    own = [(f"attention:{task.task}".replace("/", "_"), _OWN.format(task.task)) for task in card.tasks]
    return [*islice(telling([*_explanations(card, predictions), *_overlays(card)]), 1), *telling(own)]


def _explanations(card: SlideCard, predictions: Predictions) -> list[tuple[str, str]]:
    """Columns that `histotl explain` wrote, by the method that it found the most faithful for each task."""
    path = predictions.folder / EXPLANATION_NAME
    if not path.is_file():
        return []
    tested = json.loads(path.read_text(encoding="utf-8")).get("faithfulness", {})
    overlays = []
    for task in card.tasks:
        method = next((name for name in tested.get(task.task, {}) if name != RANDOM), "")
        what = {task.predicted: f"“{task.predicted}”", EXPECTED: "a higher grade"}
        for name, meaning in what.items() if method else ():
            column = f"{task.task}:{name}:{method}".replace("/", "_")
            overlays.append((column, f"how much each tile speaks for {meaning} ({task.task}), by {method}"))
    return overlays


def _overlays(card: SlideCard) -> list[tuple[str, str]]:
    """Columns of the tile scores with their captions, the most telling first."""
    overlays = [("attention", "attention: how much each tile counts in the answer")]
    for task in card.tasks:
        if not np.isnan(task.stated):
            column = f"{task.task}:{task.predicted}".replace("/", "_")
            overlays.append((column, f"probability of “{task.predicted}” ({task.task}) of each tile"))
    return [*overlays, ("ood_score", "OOD score of each tile")]


def _size_mm(coords: CoordsFile) -> str:
    if coords.mpp is None or not coords.level0_width or not coords.level0_height:
        return ""
    return f"{coords.level0_width * coords.mpp / 1000:.1f} × {coords.level0_height * coords.mpp / 1000:.1f} mm"


def data_uri(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    """A picture, uint8 RGB (h, w, 3), as a JPEG inside of an address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=82, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
