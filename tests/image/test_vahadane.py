"""Vahadane: the factorisation is a minimum, finds painted stains, and refuses what has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from histotl.core.errors import SlideError, UsageError
from histotl.core.registry import create
from histotl.image._two_stains import angle_deg
from histotl.image.stain.macenko import Macenko
from histotl.image.stain.vahadane import Vahadane, _amounts, factors

RUIFROK = ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11])
PAIRS = [RUIFROK, ([0.66, 0.69, 0.30], [0.16, 0.95, 0.27]), ([0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581])]


def unit(vectors: object) -> np.ndarray:
    found = np.asarray(vectors, float)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def error(density: np.ndarray, colours: np.ndarray, sparsity: float) -> float:
    """What the factorisation minimises, with the best concentrations."""
    colours = unit(np.maximum(colours, 0))
    amounts = _amounts(density @ colours.T - sparsity, float(colours[0] @ colours[1]))
    return float(0.5 * ((density - amounts @ colours) ** 2).sum() + sparsity * amounts.sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_concentrations_in_closed_form_are_those_of_a_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    colours, density, sparsity = unit(rng.random((2, 3))), rng.normal(0.3, 0.5, 3), float(rng.random() * 0.3)

    def loss(amounts: np.ndarray) -> float:
        return float(0.5 * ((density - amounts @ colours) ** 2).sum() + sparsity * amounts.sum())

    ours = _amounts((density @ colours.T - sparsity)[None], float(colours[0] @ colours[1]))[0]
    solved = minimize(loss, np.ones(2), bounds=[(0, None)] * 2, tol=1e-12)
    assert (ours >= 0).all()
    assert loss(ours) <= solved.fun + 1e-7


def test_no_colours_nearby_explain_the_pixels_better() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.gamma(0.5, 0.6, (4000, 2))
    density = amounts @ unit(RUIFROK) + rng.normal(0, 0.01, (4000, 3))
    found = factors(density, 0.1)
    best = error(density, found, 0.1)
    for _ in range(200):
        assert error(density, found + rng.normal(0, 0.02, (2, 3)), 0.1) > best - 1e-6 * best


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("swapped", [False, True])
def test_finds_painted_stains_within_two_degrees(paint, pair, *, swapped: bool) -> None:
    tiles = paint(*(pair[::-1] if swapped else pair))
    found = np.array(Vahadane().fit(tiles).state["stains"])
    for stain, true in zip(found, pair, strict=True):
        assert angle_deg(np.array([stain, true])) < 2


def test_two_stainings_of_one_tissue_become_alike(paint) -> None:
    pale, strong = paint(*PAIRS[0]), paint(*PAIRS[2])
    before = (pale.float() - strong.float()).abs().mean()
    after = [Vahadane().fit(tiles)(tiles).float() for tiles in (pale, strong)]
    assert (after[0] - after[1]).abs().mean() < 0.35 * before


def test_a_few_odd_pixels_turn_it_less_than_macenko(paint) -> None:
    tiles = paint(*RUIFROK)
    stained = tiles.clone()
    stained.view(-1, 3)[::50] = torch.tensor([20, 90, 60], dtype=torch.uint8)  # green ink, two pixels in a hundred

    def turned(method: Macenko | Vahadane) -> float:
        clean, inked = (np.array(method.fit(some).state["stains"]) for some in (tiles, stained))
        return max(angle_deg(np.array(pair)) for pair in zip(clean, inked, strict=True))

    assert turned(Vahadane()) < turned(Macenko())


@pytest.mark.parametrize("colour", [(0.65, 0.70, 0.29), (1.0, 1.0, 1.0)])
def test_one_stain_is_refused(paint, colour) -> None:
    with pytest.raises(SlideError, match=r"one stain explains|one colour") as caught:
        Vahadane().fit(paint(colour, colour))
    assert "--stain none" in caught.value.hint


def test_senseless_arguments_are_refused() -> None:
    for spec in ("sparsity=-0.1", "beta=0.0", "residual='some'"):
        with pytest.raises(UsageError, match="vahadane"):
            create("stain", f"vahadane({spec})")
