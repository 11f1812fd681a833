"""The colour of glass: found where it is seen, and 255 with the reason where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.image._glass import LEAST_LEVEL, find_glass

GREY, WARM, DIM = (225.0, 220.0, 228.0), (243.0, 240.0, 226.0), (212.0, 216.0, 210.0)


def photograph(density: np.ndarray, white: tuple[float, ...], *, noise: float = 1.5, seed: int = 0) -> torch.Tensor:
    """Light through densities (n, h, w, 3) on glass of a colour, as a camera with noise sees it."""
    rng = np.random.default_rng(seed)
    light = (np.array(white) + 1) * np.exp(-density) - 1 + rng.normal(0, noise, density.shape)
    return torch.from_numpy(np.clip(np.rint(light), 0, 255).astype(np.uint8))


def tissue(*, glass: float, n: int = 6, side: int = 96) -> np.ndarray:
    """Densities of tiles whose upper share is glass and whose rest are nuclei in eosin."""
    rng = np.random.default_rng(3)
    stains = np.array([[0.65, 0.70, 0.29], [0.12, 0.97, 0.22]])
    amounts = rng.gamma(3, 0.25, (n, side, side, 2)) * rng.integers(0, 2, (n, side, side, 2)) + (0.02, 0.1)
    amounts[:, : round(glass * side)] = 0
    return amounts @ stains


@pytest.mark.parametrize("white", [GREY, WARM, DIM, (251.0, 252.0, 250.0)])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_it_is_found_within_a_level(white: tuple[float, ...], share: float) -> None:
    found, unknown = find_glass(photograph(tissue(glass=share), white))
    assert not unknown
    np.testing.assert_allclose(found, white, atol=1)


def test_tissue_alone_shows_none() -> None:
    found, unknown = find_glass(photograph(tissue(glass=0.0), GREY))
    assert found.tolist() == [255, 255, 255]
    assert "of 864 squares of 8 px are flat and bright, 24 are needed" in unknown


def test_pale_tissue_of_all_shades_is_none() -> None:
    shades = np.linspace(0.02, 0.3, 36).repeat(16)[None, :, None, None] * np.ones((4, 1, 96, 1))
    found, unknown = find_glass(photograph(shades * np.array([0.3, 0.5, 0.35]), GREY))
    assert found.tolist() == [255, 255, 255]
    assert "bit by bit" in unknown


def test_mucus_that_is_alike_everywhere_has_a_colour() -> None:
    pale = np.full((4, 96, 96, 3), (0.02, 0.19, 0.10))
    found, unknown = find_glass(photograph(pale, (250.0, 250.0, 250.0)))
    assert found.tolist() == [255, 255, 255]
    assert "has the colour (245, 207, 226)" in unknown


def test_what_was_never_scanned_is_none() -> None:
    seen = photograph(tissue(glass=0.3), GREY)
    padded = torch.cat([seen, torch.full_like(seen, 255)], dim=2)
    np.testing.assert_allclose(find_glass(padded)[0], GREY, atol=1)
    assert find_glass(torch.full_like(seen, 255))[1]


def test_it_is_never_darker_than_the_least() -> None:
    found, unknown = find_glass(photograph(tissue(glass=0.5), (LEAST_LEVEL - 8,) * 3))
    assert found.tolist() == [255, 255, 255]
    assert unknown


def test_a_few_bright_spots_do_not_count() -> None:
    seen = photograph(tissue(glass=0.3), GREY)
    seen[0, :8, :32] = 250
    np.testing.assert_allclose(find_glass(seen)[0], GREY, atol=1)


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (3, 5, 64, 3), (1, 1, 1, 3)])
def test_tiles_without_a_square_are_no_error(shape: tuple[int, ...]) -> None:
    assert "0 of 0 squares" in find_glass(torch.zeros(shape, dtype=torch.uint8))[1]
