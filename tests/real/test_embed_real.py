"""Real slides through the engine: the good one is embedded, every odd one gets its answer, the run goes on."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches
from histotl.store.embeddings import check_file, open_embeddings

CONFIG = EmbedConfig(backbone=("color_stats",), dtype="fp32", device="cpu")


def test_every_odd_slide_gets_its_answer(real_data, tmp_path):
    summary = embed_slides(real_data / "slides", tmp_path, config=CONFIG)
    errors = {failure.slide_id: failure.error for failure in summary.failed}
    assert errors["multiframe_camelyon_challenge_image"] == "UpsamplingError"
    assert errors["test3-DAPI-2-387"] == "NotBrightfieldError"
    assert errors["kidney-48-5"] == "MppError"
    assert errors["boxes"] == "MppError"
    assert errors["broken"] == "SlideOpenError"
    assert errors["unopenable"] == "SlideOpenError"
    assert errors["unreadable"] in ("SlideReadError", "SlideOpenError")
    assert all(failure.hint for failure in summary.failed)
    assert "cmu-1-small-region" not in errors
    file = tmp_path / "20x_224px_0px_overlap" / "features_color_stats" / "cmu-1-small-region.h5"
    assert check_file(file) == []
    with h5py.File(file) as raw:
        assert raw["features"].shape == (len(raw["coords"]), 6)
        assert raw["coords"].attrs["patch_size"] == 224


def test_the_kidney_slide_works_once_its_pixel_size_is_given(real_data, tmp_path):
    tiling = TileConfig(mpp_override=8.0, mpp=8.0, tile_px=32)  # an overview picture of one small piece
    summary = embed_slides(real_data / "slides" / "kidney-48-5.tif", tmp_path, tiling=tiling, config=CONFIG)
    assert (summary.done, summary.failed) == (1, ())


def test_the_dicom_slide_works_at_its_own_scale(real_data, tmp_path):
    tiling = TileConfig(mpp=29.0, tile_px=64, min_area_um2=1e6)
    path = real_data / "slides" / "multiframe_camelyon_challenge_image.dcm"
    summary = embed_slides(path, tmp_path, tiling=tiling, config=CONFIG)
    assert (summary.done, summary.failed) == (1, ())


def test_real_patches_in_the_order_of_their_manifest(real_data, tmp_path):
    rows = (real_data / "ebhi" / "manifest.csv").read_text().splitlines()
    chosen = [rows[0], *rows[1::40]]
    texts = [row.split(",")[0] for row in chosen[1:]]
    table = tmp_path / "some.csv"
    body = [f"{real_data / 'ebhi' / text},{i}" for i, text in enumerate(texts)]
    table.write_text("\n".join(["path,number", *body]) + "\n")
    assert embed_patches(table, tmp_path / "out", config=CONFIG).ok
    found = open_embeddings(Path(tmp_path / "out" / "features_color_stats" / "some.h5"))
    assert [Path(item).name for item in found.items] == [Path(text).name for text in texts]
    assert np.isfinite(found.read()).all()
    assert found.read()[:, :3].std(axis=0) == pytest.approx([0.08] * 3, abs=0.07)  # stains differ between patients
