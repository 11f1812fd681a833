"""What an older algorithm made does not pass for current: it is made again, and it is said why."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from histotl.core.registry import plugin
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches
from histotl.embed.tile import tile_slides
from histotl.store.embeddings import open_embeddings

CHANGES = [
    ("stain", "macenko", {"stain": "macenko"}, "stain version: 2 != 9"),
    ("quality", "pen", {"quality": "blank + pen"}, "version 9"),
    ("augment", "d4", {"views": 1, "augment": "hed_jitter + d4"}, "d4 version 9"),
    ("tissue", "hysteresis", {}, "close_um=24.0) version 9"),
]


@pytest.mark.parametrize(("kind", "name", "options", "told"), CHANGES, ids=[change[0] for change in CHANGES])
def test_slides_are_embedded_again(kind, name, options, told, slides, tmp_path, tiling, config, monkeypatch, caplog):
    config, out = dataclasses.replace(config, **{"quality": "none", **options}), tmp_path / "out"
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
    assert embed_slides(slides, out, tiling=tiling, config=config).skipped == 3
    assert not caplog.records
    monkeypatch.setattr(plugin(kind, name).factory, "version", 9, raising=False)
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
    assert told in caplog.text
    assert "are replaced" in caplog.text
    assert embed_slides(slides, out, tiling=tiling, config=config).skipped == 3


def test_patches_are_embedded_again(patch_set, tmp_path, config, monkeypatch, caplog):
    config, out = dataclasses.replace(config, stain="reinhard"), tmp_path / "out"
    assert embed_patches(patch_set, out, config=config).done == 1
    assert embed_patches(patch_set, out, config=config).skipped == 1
    monkeypatch.setattr(plugin("stain", "reinhard").factory, "version", 9)
    assert embed_patches(patch_set, out, config=config).done == 1
    assert "stain version: 2 != 9" in caplog.text


def test_slides_are_tiled_again(slides, tmp_path, tiling, monkeypatch):
    out = tmp_path / "out"
    assert tile_slides(slides, out, tiling=tiling).done == 3
    assert tile_slides(slides, out, tiling=tiling).skipped == 3
    monkeypatch.setattr(plugin("tissue", "hysteresis").factory, "version", 9, raising=False)
    assert tile_slides(slides, out, tiling=tiling).done == 3


def test_the_cohorts_stain_is_estimated_again(slides, tmp_path, tiling, config, monkeypatch):
    config, out = dataclasses.replace(config, stain="macenko(target='cohort')"), tmp_path / "out"
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
    monkeypatch.setattr(plugin("stain", "macenko").factory, "version", 9)
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 3
    assert len(list((out / "stain").glob("macenko-*.json"))) == 2


def test_patches_are_seen_against_255_and_the_file_says_why(patch_set, tmp_path, config):
    for stain, unknown in (("macenko", True), ("macenko(white=255)", False)):
        out = tmp_path / str(unknown)
        assert embed_patches(patch_set, out, config=dataclasses.replace(config, stain=stain)).done == 1
        found = open_embeddings(out / "features_color_stats" / "manifest.h5")
        assert found.identity is not None
        assert "white=255" in found.identity.stain
        assert ("cut from tissue" in str(found.stain_state.get("white_unknown"))) == unknown
    rows = [open_embeddings(tmp_path / str(u) / "features_color_stats" / "manifest.h5").read() for u in (True, False)]
    np.testing.assert_array_equal(*rows)


def test_a_slides_white_is_kept_with_its_features(slides, tmp_path, tiling, config):
    config = dataclasses.replace(config, stain="macenko")
    assert embed_slides(slides, tmp_path, tiling=tiling, config=config).done == 3
    for path in tmp_path.rglob("features_color_stats/*.h5"):
        np.testing.assert_allclose(open_embeddings(path).stain_state["white"], (243, 243, 243), atol=1)
