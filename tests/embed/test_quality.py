"""Quality figures in the files of a run: those of the tiles as they are, whatever the stain, the batch and the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.core.errors import UnknownNameError, UsageError
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches
from histotl.image.measures import Measures
from histotl.store.embeddings import Embeddings, open_embeddings
from histotl.store.layout import find_features
from histotl.wsi.slide import open_slide
from histotl.wsi.tiles import read_tiles

TILING = TileConfig(tile_px=128)


def only_file(out: Path) -> Embeddings:
    (path,) = find_features(out)
    return open_embeddings(path)


def test_figures_are_those_of_the_raw_tiles(painted_slide: Path, tmp_path: Path) -> None:
    config = EmbedConfig(backbone=("color_stats",), stain="reinhard", batch_size=7)
    summary = embed_slides(painted_slide, tmp_path, tiling=TILING, config=config)
    assert summary.ok
    assert summary.telemetry is not None
    assert summary.telemetry.seconds["quality"] > 0
    (told,) = summary.quality
    assert told.n_tiles == summary.n_tiles
    assert told.doubtful["pen"] == 0
    again = embed_slides(painted_slide, tmp_path, tiling=TILING, config=config)
    assert (again.skipped, again.quality) == (1, (told,)), "files that were there are summed up too"
    with only_file(tmp_path) as file, open_slide(painted_slide) as slide:
        found, grid = file.quality, file.coords_l0
        assert found is not None
        for column, median in told.medians.items():
            assert median == pytest.approx(np.nanmedian(found.column(column)))
        assert grid is not None
        measures = Measures.parse("all")
        assert found.spec.columns == measures.columns
        assert found.spec.measures == measures.specs
        from histotl.wsi.mask import find_tissue
        from histotl.wsi.tiling import plan_tiles
        from histotl.wsi.tissue.hysteresis import Hysteresis

        mask = find_tissue(slide, Hysteresis(), min_area_um2=1000.0, max_hole_um2=50_000.0)
        plan = plan_tiles(slide.info, TILING.spec, mask.mask, mask.scale_l0)
        np.testing.assert_array_equal(plan.coords_l0, grid)
        wanted = measures(torch.from_numpy(read_tiles(slide, plan, np.arange(len(plan)))), TILING.mpp).numpy()
        np.testing.assert_allclose(found.values, wanted, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_figures(painted_slide: Path, tmp_path: Path) -> None:
    for name in ("all", "none"):
        config = EmbedConfig(backbone=("color_stats",), quality=name)
        assert embed_slides(painted_slide, tmp_path / name, tiling=TILING, config=config).ok
    with only_file(tmp_path / "all") as one, only_file(tmp_path / "none") as other:
        assert other.quality is None
        assert one.identity == other.identity
        np.testing.assert_array_equal(one.read(), other.read())


def test_a_file_without_the_figures_asked_for_is_made_again(painted_slide: Path, tmp_path: Path) -> None:
    def run(quality: str) -> tuple[int, int]:
        config = EmbedConfig(backbone=("color_stats",), quality=quality)
        summary = embed_slides(painted_slide, tmp_path, tiling=TILING, config=config)
        return summary.done, summary.skipped

    assert run("none") == (1, 0)
    assert run("pen + blank") == (1, 0)
    assert run("pen + blank") == (0, 1)
    assert run("pen(least=0.3) + blank") == (1, 0)
    assert run("none") == (0, 1), "figures that nobody asked for do no harm"


def test_an_unknown_measure_is_refused_before_any_slide(painted_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no quality is called 'focus'"):
        embed_slides(painted_slide, tmp_path / "out", config=EmbedConfig(backbone=("color_stats",), quality="focus"))
    assert not (tmp_path / "out").exists()


def test_patches_have_figures_whatever_their_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "patches"
    folder.mkdir()
    for name, side in (("a", 96), ("b", 160), ("c", 96)):
        Image.fromarray(rng.integers(60, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    Image.new("RGB", (96, 96), "white").save(folder / "d.png")
    config = EmbedConfig(backbone=("color_stats",), quality="blank + focus_laplacian")
    assert embed_patches(folder, tmp_path / "out", config=config).ok
    with only_file(tmp_path / "out") as file:
        assert file.quality is not None
        np.testing.assert_array_equal(file.quality.column("blank") == 1, [False, False, False, True])
        np.testing.assert_array_equal(np.isnan(file.quality.column("focus_laplacian")), [False, False, False, True])
        assert json.loads(file.provenance.to_json())["specs"]["quality"] == list(file.quality.spec.measures)


def test_drop_leaves_tiles_out_and_says_how_many(painted_slide: Path, tmp_path: Path) -> None:
    config = EmbedConfig(backbone=("color_stats",), dtype="fp32")
    embed_slides(painted_slide, tmp_path / "all", tiling=TILING, config=config)
    with only_file(tmp_path / "all") as file:
        assert file.quality is not None
        blank, whole, corners = file.quality.column("blank"), file.read(), file.coords_l0
    limit = float(np.median(blank))
    drop = replace(config, drop=f"blank > {limit!r}")
    summary = embed_slides(painted_slide, tmp_path / "some", tiling=TILING, config=drop)
    kept = ~(blank > limit)
    assert 0 < kept.sum() < len(kept)
    assert (summary.n_tiles, summary.dropped) == (kept.sum(), (~kept).sum())
    with only_file(tmp_path / "some") as file:
        np.testing.assert_array_equal(file.coords_l0, corners[kept])
        np.testing.assert_allclose(file.read(), whole[kept], rtol=1e-6)
        assert file.provenance is not None
        assert file.provenance.specs["dropped"] == (~kept).sum()
    assert embed_slides(painted_slide, tmp_path / "some", tiling=TILING, config=drop).skipped == 1
    assert embed_slides(painted_slide, tmp_path / "some", tiling=TILING, config=config).done == 1, (
        "nothing is dropped now"
    )


def test_a_slide_of_which_nothing_is_left_fails_and_the_others_go_on(painted_slide: Path, tmp_path: Path) -> None:
    config = EmbedConfig(backbone=("color_stats",), drop="blank >= 0")
    summary = embed_slides(painted_slide, tmp_path, tiling=TILING, config=config)
    assert [failure.error for failure in summary.failed] == ["NoTissueError"]
    assert "--drop" in summary.failed[0].message
    assert not list(tmp_path.rglob("features_*/*.h5"))


@pytest.mark.parametrize(
    ("drop", "fact"), [("pne > 0.2", "pne"), ("pen >", "cannot be read"), ("1 > 0", "names nothing")]
)
def test_conditions_that_cannot_be_used(painted_slide: Path, tmp_path: Path, drop: str, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        embed_slides(painted_slide, tmp_path, tiling=TILING, config=EmbedConfig(backbone=("color_stats",), drop=drop))
    with pytest.raises(UsageError, match="does not go with patches"):
        embed_patches(tmp_path, tmp_path / "out", config=EmbedConfig(backbone=("color_stats",), drop="pen > 0.2"))
