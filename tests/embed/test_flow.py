"""Mixed batches: whose fault it is when one fails, and what the others lose, which is nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from histotl.backbones.color_stats import ColorStatsEmbedder
from histotl.core.errors import HistotlError
from histotl.embed import _models
from histotl.embed._models import Model
from histotl.embed.config import EmbedConfig
from histotl.embed.engine import embed_slides
from histotl.store.embeddings import EmbeddingsWriter, open_embeddings
from histotl.wsi.pyramid import write_pyramid

BATCH = 1000
"""More than all tiles of the fixtures together: everything is in one batch."""


@pytest.fixture
def in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed gives nothing before all slides are planned, so that they share a batch."""
    from histotl.embed import _reading

    real = _reading.Feed._fill

    def patient(feed: _reading.Feed) -> None:
        feed._plan()
        for turn in feed._planned:
            turn.wait()
        real(feed)

    monkeypatch.setattr(_reading.Feed, "_fill", patient)


def features(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: open_embeddings(path).read() for path in sorted(out.rglob("features_color_stats/*.h5"))}


@pytest.fixture
def expected(slides, tmp_path, tiling, config) -> dict[str, np.ndarray]:
    out = tmp_path / "expected"
    embed_slides(slides, out, tiling=tiling, config=config)
    return features(out)


@pytest.mark.usefixtures("in_one_batch")
def test_slides_share_a_batch_and_each_gets_its_own_rows(slides, tmp_path, tiling, expected, monkeypatch):
    sizes, real = [], Model.__call__
    monkeypatch.setattr(
        Model, "__call__", lambda model, tiles, *rest: sizes.append(len(tiles)) or real(model, tiles, *rest)
    )
    config = EmbedConfig(backbone=("color_stats",), dtype="fp32", device="cpu", batch_size=BATCH)
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert sizes == [summary.n_tiles]
    found = features(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-6)


@pytest.mark.usefixtures("in_one_batch")
@pytest.mark.parametrize("stain", ["none", "reinhard"])
def test_every_slide_of_a_batch_has_its_own_stain(slides, tmp_path, tiling, stain):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for name in "abc":
        one = EmbedConfig(backbone=("color_stats",), stain=stain, dtype="fp32", device="cpu")
        embed_slides(slides / f"{name}.tiff", alone, tiling=tiling, config=one)
    mixed = EmbedConfig(backbone=("color_stats",), stain=stain, dtype="fp32", device="cpu", batch_size=BATCH)
    embed_slides(slides, together, tiling=tiling, config=mixed)
    for name, rows in features(alone).items():
        np.testing.assert_allclose(features(together)[name], rows, rtol=1e-6)


@pytest.mark.usefixtures("in_one_batch")
def test_the_slide_whose_tiles_break_the_network_is_found(slides, tmp_path, tiling, expected, monkeypatch):
    victim = None
    real = ColorStatsEmbedder.__call__

    def picky(embedder: ColorStatsEmbedder, tiles: torch.Tensor) -> torch.Tensor:
        found = real(embedder, tiles)
        if (found[:, None] - victim).abs().sum(-1).min() < 1e-5:
            raise HistotlError("does not like this tile", hint="take another")
        return found

    victim = torch.from_numpy(expected["b"][3:4])[None]
    monkeypatch.setattr(ColorStatsEmbedder, "__call__", picky)
    config = EmbedConfig(backbone=("color_stats",), dtype="fp32", device="cpu", batch_size=BATCH)
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert [(f.slide_id, f.message, f.hint) for f in summary.failed] == [
        ("b", "does not like this tile", "take another")
    ]
    assert summary.done == 2
    found = features(tmp_path / "out")
    assert found.keys() == {"a", "c"}
    for name, rows in found.items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-6)


@pytest.mark.usefixtures("in_one_batch")
def test_a_slide_that_cannot_be_written_does_not_disturb_the_others(
    slides, tmp_path, tiling, expected, monkeypatch, leftovers
):
    real = EmbeddingsWriter.put

    def full_disk(writer: EmbeddingsWriter, rows: np.ndarray, values: np.ndarray) -> None:
        if writer.path.stem == "b" and rows[0] > 0:
            raise OSError(28, "No space left on device")
        real(writer, rows, values)

    monkeypatch.setattr(EmbeddingsWriter, "put", full_disk)
    config = EmbedConfig(backbone=("color_stats",), dtype="fp32", device="cpu", batch_size=20)
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert [f.slide_id for f in summary.failed] == ["b"]
    assert "No space left" in summary.failed[0].message
    assert summary.done == 2
    for name, rows in features(tmp_path / "out").items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-6)
    assert leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("batch_size", [3, 40, BATCH])
def test_bad_slides_between_good_ones_change_nothing(
    slides, tmp_path, tiling, expected, add_bad_slides, leftovers, batch_size
):
    add_bad_slides(slides)
    config = EmbedConfig(backbone=("color_stats",), dtype="fp32", device="cpu", batch_size=batch_size, workers=2)
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert summary.done == 3
    assert {f.slide_id for f in summary.failed} == {"a_garbage", "a_glass", "b_coarse", "b_spoiled"}
    found = features(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-6)
    assert leftovers(tmp_path / "out") == []
    assert not [t.name for t in threading.enumerate() if t.name.startswith("histotl-")]


def test_the_order_of_the_slides_changes_nothing(slides, tmp_path, tiling, config, expected):
    table = tmp_path / "backwards.csv"
    table.write_text("path\n" + "".join(f"{slides / f'{name}.tiff'}\n" for name in "cba"))
    embed_slides(table, tmp_path / "out", tiling=tiling, config=config)
    for name, rows in features(tmp_path / "out").items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-6)


def test_interrupt_leaves_no_thread_and_no_half_file(slides, tmp_path, tiling, config, leftovers, monkeypatch):
    for copy in range(8):
        (slides / f"d{copy}.tiff").write_bytes((slides / "a.tiff").read_bytes())
    real = _models.Model.__call__

    def slow(model: Model, tiles: torch.Tensor, *rest: object) -> torch.Tensor:
        time.sleep(0.02)
        return real(model, tiles, *rest)

    monkeypatch.setattr(_models.Model, "__call__", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are started ignoring it
    try:
        for round_, delay in enumerate((0.05, 0.2, 0.45, 0.8)):
            out = tmp_path / f"out{round_}"
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal may also come after a quick run
                embed_slides(slides, out, tiling=tiling, config=config)
                timer.join()
                time.sleep(0.1)
            timer.join()
            assert leftovers(out) == []
            assert not [t.name for t in threading.enumerate() if t.name.startswith("histotl-")]
            assert embed_slides(slides, out, tiling=tiling, config=config).ok
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_truncated_last_tile_is_the_fault_of_its_slide_only(slides, tmp_path, tiling, config, expected):
    whole = write_pyramid(tmp_path / "whole.tiff", np.array(_noise(), np.uint8), mpp=1.0, levels=(1,))
    data = whole.read_bytes()
    (slides / "b_cut.tiff").write_bytes(data)
    _cut_last_tile(slides / "b_cut.tiff")
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert [(f.slide_id, f.error) for f in summary.failed] == [("b_cut", "SlideReadError")]
    for name, rows in features(tmp_path / "out").items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-6)


def _noise() -> np.ndarray:
    """Stained from border to border, so that every tile is read."""
    rng = np.random.default_rng(5)
    return np.clip(np.array([200, 110, 160]) + rng.normal(0, 25, (640, 768, 1)), 0, 255)


def _cut_last_tile(path: Path) -> None:
    """Overwrite the second half of the last level-0 tile's bytes, as an interrupted copy leaves them."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[-1], page.databytecounts[-1]
    with path.open("r+b") as raw:
        raw.seek(offset + count // 2)
        raw.write(b"\0" * (count - count // 2))
