"""Painted stain for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

Paint = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def paint() -> Paint:
    """Tiles whose two stains are known: nuclei of one, stroma of the other, mixtures, and a quarter of bare glass."""

    def draw(first: np.ndarray, second: np.ndarray, *, n: int = 4, side: int = 128, seed: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        shape = (n, side, side)
        kind = rng.choice(4, size=shape, p=[0.25, 0.3, 0.2, 0.25])
        one = np.where(kind == 0, rng.gamma(4, 0.3, shape), np.where(kind == 2, rng.gamma(3, 0.2, shape), 0.0))
        two = np.where(kind == 1, rng.gamma(4, 0.15, shape), np.where(kind == 2, rng.gamma(3, 0.1, shape), 0.0))
        unit = [np.asarray(v) / np.linalg.norm(v) for v in (first, second)]
        density = one[..., None] * unit[0] + two[..., None] * unit[1]
        noisy = 256 * np.exp(-density) - 1 + rng.normal(0, 0.7, (*shape, 3))
        return torch.from_numpy(np.clip(np.round(noisy), 0, 255).astype(np.uint8))

    return draw


@pytest.fixture(scope="session")
def tissue(paint: Paint) -> torch.Tensor:
    """Four painted tiles, uint8 (4, 128, 128, 3)."""
    return paint([0.65, 0.70, 0.29], [0.12, 0.97, 0.22])
