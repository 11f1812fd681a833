"""A run that finds all its files there builds nothing for a network, and one that has a little left does only that."""

from __future__ import annotations

import dataclasses

import pytest

from histotl.embed import _models
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Names of the backbones that were handed to a runtime."""
    names: list[str] = []
    accelerate = _models.accelerate

    def counted(embedder, *args, **kwargs):
        names.append(embedder.card.name)
        return accelerate(embedder, *args, **kwargs)

    monkeypatch.setattr(_models, "accelerate", counted)
    return names


def test_slides(slides, tmp_path, tiling, config, built):
    out, two = tmp_path / "out", dataclasses.replace(config, backbone=("color_stats", "scattering(input_px=64)"))
    assert embed_slides(slides, out, tiling=tiling, config=two).done == 3
    assert built == ["color_stats", "scattering"]
    built.clear()
    again = embed_slides(slides, out, tiling=tiling, config=two)
    assert (again.skipped, again.done, again.n_tiles, again.telemetry) == (3, 0, 0, None)
    assert built == []
    next(out.rglob("features_scattering/b.h5")).unlink()
    again = embed_slides(slides, out, tiling=tiling, config=two)
    assert (again.skipped, again.done) == (2, 1)
    assert built


def test_a_slide_that_cannot_be_opened_any_more_is_still_said(slides, tmp_path, tiling, config, built):
    out = tmp_path / "out"
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
    built.clear()
    (slides / "b.tiff").write_bytes(b"this is not a slide")
    again = embed_slides(slides, out, tiling=tiling, config=config)
    assert (again.skipped, [failure.slide_id for failure in again.failed]) == (2, ["b"])
    assert (out / "failures.csv").is_file()
    assert built == []


def test_patches(patch_set, tmp_path, config, built):
    out = tmp_path / "out"
    assert embed_patches(patch_set, out, config=config).done == 1
    assert built == ["color_stats"]
    assert embed_patches(patch_set, out, config=config).skipped == 1
    assert built == ["color_stats"]
