"""Quality figures: what each finds, what it leaves alone, and what becomes of tiles that cannot be measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from histotl.core.errors import SpecError, UnknownNameError, UsageError
from histotl.core.registry import available, create
from histotl.image._tile_view import TileView
from histotl.image.measures import Measures
from histotl.image.quality.bubble import Bubble
from histotl.image.quality.focus_laplacian import FocusLaplacian
from histotl.image.quality.fold import Fold
from tests.contracts import tissue_tiles


def figures(tiles: torch.Tensor, mpp: float = 0.5) -> dict[str, np.ndarray]:
    """Column -> its figure for each tile."""
    measures = Measures.parse("all")
    return dict(zip(measures.columns, measures(tiles, mpp).numpy().T, strict=True))


def flat(*level: int, n: int = 2, side: int = 224) -> torch.Tensor:
    return torch.tensor(level, dtype=torch.uint8).expand(n, side, side, 3).contiguous()


def test_all_measures_have_their_own_columns() -> None:
    measures = Measures.parse("all")
    assert len(measures.specs) == len(available("quality"))
    assert {"focus_laplacian", "focus_reblur", "pen", "fold", "bubble", "blank", "blood"} <= set(measures.columns)
    assert {"blockiness", "haematoxylin", "eosin", "pen_blue", "pen_green", "pen_red", "pen_black"} <= set(
        measures.columns
    )


def test_a_text_names_measures_in_their_order() -> None:
    measures = Measures.parse("fold(width_um=30.0) + blank")
    assert measures.columns == ("fold", "blank")
    assert measures.specs[0] == "fold(mpp=4.0, width_um=30.0)"
    assert Measures.parse(" + ".join(measures.specs)) == measures
    assert Measures.parse("none")(tissue_tiles(), 0.5).shape == (6, 0)


def test_texts_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no quality is called 'focuss_laplacian'"):
        Measures.parse("focuss_laplacian")
    with pytest.raises(SpecError):
        Measures.parse("blank + ")
    with pytest.raises(UsageError, match="two quality measures give blank"):
        Measures.parse("blank + blank(density=0.3)")


@pytest.mark.parametrize("name", ["focus_laplacian", "focus_reblur", "pen", "fold", "bubble", "blank", "blood"])
def test_a_pixel_size_of_zero_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="mpp is 0"):
        create("quality", f"{name}(mpp=0.0)")


def test_a_band_of_one_stain_is_no_fold_and_one_of_both_is() -> None:
    stains, beside = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]), np.array([0.5, 0.4])
    across = np.abs(np.arange(224) - 112) < 20  # 20 µm
    tiles = []
    for band in (beside * 2, beside * (1, 4), beside * (1, 1)):
        density = np.where(across[:, None, None], band, beside) @ stains
        tiles.append(np.broadcast_to(255 * np.exp(-density), (224, 224, 3)).astype(np.uint8))
    fold, fibre, even = Measures.parse("fold")(torch.from_numpy(np.stack(tiles)), 0.5)[:, 0].tolist()
    assert even == pytest.approx(1, abs=1e-3)
    assert fold > 1.93
    assert fibre < fold - 0.3


def test_a_channel_that_the_camera_clipped_hides_no_fold() -> None:
    across = np.abs(np.arange(224) - 112) < 20
    tile = np.broadcast_to(np.where(across[:, None], 120, 175)[None, :, :], (224, 224, 3)).astype(np.uint8)
    clipped = tile.copy()
    clipped[..., 0] = 255
    plain, without_red = Measures.parse("fold")(torch.from_numpy(np.stack([tile, clipped])), 0.5)[:, 0].tolist()
    assert without_red == pytest.approx(plain, rel=1e-4)


def test_white_tiles_are_blank_and_have_neither_focus_nor_fold() -> None:
    found = figures(flat(255, 255, 255))
    assert (found["blank"] == 1).all()
    for name in ("focus_laplacian", "focus_reblur", "fold", "blockiness"):
        assert np.isnan(found[name]).all(), name
    for name in ("pen", "blood", "bubble", "haematoxylin", "eosin"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6, err_msg=name)


def test_black_tiles_are_ink_and_have_no_focus() -> None:
    found = figures(flat(0, 0, 0))
    assert (found["pen_black"] == 1).all()
    assert (found["pen"] == 1).all()
    assert (found["blank"] == 0).all()
    for name in ("focus_laplacian", "focus_reblur", "blockiness"):
        assert np.isnan(found[name]).all(), name
    np.testing.assert_allclose(found["fold"], 1, rtol=1e-5)


def test_flat_stained_tiles_have_no_focus_and_no_artefact() -> None:
    found = figures(flat(150, 90, 160))
    for name in ("focus_laplacian", "focus_reblur", "blockiness"):
        assert np.isnan(found[name]).all(), name
    for name in ("pen", "blood", "blank"):
        assert (found[name] == 0).all(), name
    np.testing.assert_allclose(found["fold"], 1, rtol=1e-5)
    assert (found["haematoxylin"] > 0.3).all()


def test_glass_with_the_noise_of_a_camera_has_no_focus() -> None:
    noise = 243 + np.random.default_rng(0).normal(0, 1.1, (2, 224, 224, 3))
    found = figures(torch.from_numpy(noise.round().astype(np.uint8)))
    assert np.isnan(found["focus_laplacian"]).all()
    assert np.isnan(found["focus_reblur"]).all()


def test_mean_densities_are_those_that_were_mixed() -> None:
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    level = 256 * np.exp(-np.array([0.8, 0.4]) @ unit) - 1
    found = figures(flat(*(round(value) for value in level)))
    np.testing.assert_allclose(found["haematoxylin"], 0.8, atol=0.02)
    np.testing.assert_allclose(found["eosin"], 0.4, atol=0.02)


def test_inks_are_told_apart_and_stains_are_none() -> None:
    inks = {"pen_blue": (30, 60, 200), "pen_green": (30, 160, 80), "pen_red": (230, 40, 45), "pen_black": (25, 25, 25)}
    for name, level in inks.items():
        found = figures(flat(*level, n=1))
        seen = {column: float(found[column][0]) for column in inks}
        assert seen == {column: float(column == name) for column in inks}
    for level in ((90, 60, 140), (220, 120, 170), (200, 100, 110), (60, 40, 100)):  # nuclei, eosin, red cells
        assert figures(flat(*level, n=1))["pen"][0] == 0, level


def test_red_cells_are_blood_and_eosin_is_not() -> None:
    assert figures(flat(200, 100, 110, n=1))["blood"][0] == 1
    assert figures(flat(220, 120, 170, n=1))["blood"][0] == 0


def test_half_a_tile_of_glass_is_half_blank() -> None:
    tile = tissue_tiles(1, 224)
    tile[:, :, :112] = 243
    whole = figures(tissue_tiles(1, 224))["blank"][0]
    assert figures(tile)["blank"][0] == pytest.approx(0.5 + whole / 2, abs=0.05)


def test_focus_is_the_same_for_a_paler_picture() -> None:
    tiles = tissue_tiles(4, 224)
    pale = (255 - (255 - tiles.float()) * 0.5).round().to(torch.uint8)
    one, other = figures(tiles), figures(pale)
    np.testing.assert_allclose(other["focus_laplacian"], one["focus_laplacian"], rtol=0.03)
    np.testing.assert_allclose(other["focus_reblur"], one["focus_reblur"], rtol=0.03)


def test_figures_hold_at_another_pixel_size_of_the_same_picture() -> None:
    tiles = tissue_tiles(4, 224)
    finer = tiles.repeat_interleave(2, 1).repeat_interleave(2, 2)
    one, other = figures(tiles, 0.5), figures(finer, 0.25)
    # Less noise is left in four times as many pixels; blocks are those of the file, whatever its pixel size.
    for name in set(one) - {"focus_laplacian", "focus_reblur", "blockiness"}:
        np.testing.assert_allclose(other[name], one[name], rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["focus_laplacian", "focus_reblur"])
def test_focus_is_that_of_the_stated_pixel_size(name: str) -> None:
    tiles = tissue_tiles(4, 224)
    finer = tiles.repeat_interleave(2, 1).repeat_interleave(2, 2)
    measures = Measures.parse(f"{name}(noise=0.0)")
    torch.testing.assert_close(measures(finer, 0.25), measures(tiles, 0.5), rtol=2e-3, atol=1e-5)


def test_an_empty_batch_has_no_figures() -> None:
    measures = Measures.parse("all")
    assert measures(tissue_tiles()[:0], 0.5).shape == (0, len(measures.columns))


def test_shrinking_by_a_broken_factor_keeps_the_mean() -> None:
    tiles = tissue_tiles(2, 224)
    view = TileView(tiles=tiles, mpp=0.3)
    plane = view.levels(1.0)[1]
    assert plane.shape == (2, 67, 67)
    torch.testing.assert_close(plane.mean(), tiles[..., 1].float().mean(), rtol=5e-3, atol=0)


def test_shrinking_in_two_steps_is_shrinking_in_one() -> None:
    tiles = tissue_tiles(2, 224)
    view = TileView(tiles=tiles, mpp=0.5)
    first = view.levels(1.0), view.levels(8.0)
    assert torch.equal(TileView(tiles=tiles, mpp=0.5).levels(8.0)[0], first[1][0])
    wanted = tiles[..., 0].view(2, 14, 16, 14, 16).float().mean((2, 4))
    torch.testing.assert_close(first[1][0], wanted)


def test_tiles_of_unknown_pixel_size_are_looked_at_as_they_are() -> None:
    tiles = tissue_tiles(2, 224)
    sharp = FocusLaplacian()(TileView(tiles=tiles, mpp=math.nan))
    torch.testing.assert_close(sharp, FocusLaplacian()(TileView(tiles=tiles, mpp=1.0)))


def test_what_is_larger_than_the_tile_cannot_be_measured() -> None:
    small = tissue_tiles(2, 32)
    assert Bubble()(TileView(tiles=small, mpp=0.5)).isnan().all()
    assert Fold()(TileView(tiles=small, mpp=0.5)).isnan().all()
