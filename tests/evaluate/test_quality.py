"""Quality figures on the page of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.summary import SlideQuality
from histotl.evaluate.quality import quality_of, quality_rows
from histotl.evaluate.source import Features
from histotl.store.embeddings import open_embeddings
from histotl.store.layout import find_features


def slide(name: str, n_tiles: int, **doubtful: float) -> SlideQuality:
    return SlideQuality(slide_id=name, n_tiles=n_tiles, medians={}, doubtful=doubtful)


def test_shares_are_of_tiles_and_the_worst_slides_are_named() -> None:
    slides = [slide("a", 100, pen=0.0, fold=0.02), slide("b", 300, pen=0.2, fold=0.0), slide("c", 100, pen=0.5)]
    pen, fold = quality_rows(slides)
    assert (pen.column, pen.condition) == ("pen", "pen > 0.03")
    assert pen.share == pytest.approx((300 * 0.2 + 100 * 0.5) / 500)
    assert pen.slides == 2
    assert pen.worst == (("c", 0.5), ("b", 0.2))  # those that have none are not named
    assert fold.share == pytest.approx(2 / 400)  # one slide has no such figure
    assert fold.slides == 0


def test_without_figures_there_are_no_rows(tmp_path: Path) -> None:
    assert quality_rows(()) == ()
    assert quality_of(Features(files={}), ["a"]) == ()


def test_slides_that_are_not_evaluated_do_not_count(painted_slide: Path, tmp_path: Path) -> None:
    config = EmbedConfig(backbone=("color_stats",))
    embed_slides(painted_slide, tmp_path, tiling=TileConfig(tile_px=128), config=config)
    (path,) = find_features(tmp_path)
    features = Features(files={path.stem: path}, example=open_embeddings(path))
    assert [slide.slide_id for slide in quality_of(features, [path.stem])] == [path.stem]
    assert quality_of(features, ["another"]) == ()
