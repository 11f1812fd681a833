"""Spread, stain vectors, cosines and flips where the answer is known."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from histotl.core.errors import NoTissueError, UsageError
from histotl.core.intervals import Resamples, estimate
from histotl.evaluate.stain.colour import Change, Colour, mean_colours, spread
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.robustness import cosines, flip_rates, restain, sturdiness, weighted_quantile
from histotl.evaluate.stain.vectors import Vectors, swatch, vectors_of
from histotl.image.stain.macenko import Macenko
from histotl.image.stain.reinhard import Reinhard


def draws(n: int, resamples: int = 50) -> Resamples:
    return Resamples.draw(np.arange(n), resamples, 0)


def colour(lightness: float, density: float = 0.5) -> Colour:
    return Colour(lab=(lightness, 20.0, -10.0), density=(density,) * 3)


def test_spread_is_the_standard_deviation_between_slides() -> None:
    values = [50.0, 53.0, 61.0, 58.0]
    found = spread([colour(v, v / 100) for v in values], draws(4))
    assert estimate(found["lightness"]).value == pytest.approx(np.std(values, ddof=1))
    assert estimate(found["delta_e"]).value == pytest.approx(np.std(values, ddof=1))
    assert estimate(found["density"]).value == pytest.approx(np.std(values, ddof=1) / 100)
    assert estimate(found["green_red"]).value == 0


def test_the_interval_of_a_change_is_paired() -> None:
    before, after = ([colour(factor * v) for v in (1.0, 5.0, 2.0, 9.0, 4.0)] for factor in (2.0, 1.0))
    change = Change.of(*(spread(colours, draws(5, 400))["delta_e"] for colours in (before, after)))
    assert change.difference.value == pytest.approx(-change.after.value)
    # Draw by draw the change is just minus what is left; unpaired draws would also rise.
    assert change.difference.high == pytest.approx(-change.after.low)


def test_mean_colour_is_that_of_the_stained_pixels_before() -> None:
    tiles = torch.full((1, 40, 40, 3), 250, dtype=torch.uint8)
    tiles[:, :20] = torch.tensor([200, 100, 150], dtype=torch.uint8)
    found = mean_colours({"": tiles, "paler": tiles.clamp(min=190)})
    assert found[""].density == pytest.approx(-np.log((np.array([200, 100, 150]) + 1) / 256))
    assert found["paler"].density == pytest.approx(-np.log((np.array([200, 190, 190]) + 1) / 256))
    with pytest.raises(NoTissueError, match="none of"):
        mean_colours({"": tiles[:, 20:]})


def test_vectors_are_read_from_the_state(two_colours: torch.Tensor) -> None:
    found = vectors_of(Macenko().fit(two_colours).state)
    assert isinstance(found, Vectors)
    assert np.linalg.norm(found.stains, axis=1) == pytest.approx([1, 1])
    assert found.angle_deg > 4
    assert "no stain vectors" in str(vectors_of(Reinhard().fit(two_colours).state))


@pytest.fixture
def two_colours() -> torch.Tensor:
    rng = np.random.default_rng(0)
    amounts = rng.gamma(2, 0.4, (2, 64, 64, 2)) * rng.integers(0, 2, (2, 64, 64, 2))
    density = amounts @ np.array([[0.65, 0.70, 0.29], [0.10, 0.97, 0.22]])
    return torch.from_numpy(np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8))


def test_swatches_are_blue_and_pink() -> None:
    hues = [
        colorsys.rgb_to_hsv(*(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0] * 360
        for text in (swatch((0.65, 0.70, 0.29)), swatch((0.07, 0.99, 0.11)))
    ]
    assert 240 < hues[0] < 275
    assert 285 < hues[1] < 340


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_the_cosine_with_itself_is_one(seed: int, width: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(5, width)).astype(np.float32)
    assert cosines(rows, rows) == pytest.approx(np.ones(5))
    assert cosines(rows, -3 * rows) == pytest.approx(-np.ones(5))


def test_cosine_of_nothing_is_undefined() -> None:
    assert np.isnan(cosines(np.zeros((1, 3)), np.ones((1, 3)))).all()


def test_jitter_of_strength_zero_changes_nothing(two_colours: torch.Tensor) -> None:
    same = restain(two_colours, strength=0.0, slide_id="a", draw=0, seed=0)
    assert torch.equal(same, two_colours)


def test_a_slide_is_restained_as_a_whole_and_by_its_name_alone(two_colours: torch.Tensor) -> None:
    twice = two_colours[:1].repeat(2, 1, 1, 1)
    found = restain(twice, strength=0.1, slide_id="a", draw=0, seed=0)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], twice[0])
    assert torch.equal(found[1:], restain(twice[1:], strength=0.1, slide_id="a", draw=0, seed=0))
    for other in ({"slide_id": "b"}, {"draw": 1}, {"seed": 1}):
        changed = {"strength": 0.1, "slide_id": "a", "draw": 0, "seed": 0} | other
        assert not torch.equal(found, restain(twice, **changed)), other


def test_sturdiness_of_features_that_do_not_move_is_one() -> None:
    rng = np.random.default_rng(0)
    plain = [rng.normal(size=(4, 6)).astype(np.float32) for _ in range(3)]
    found = sturdiness("b", 0.1, plain, [[one, one] for one in plain], draws(3))
    for name in ("cosine", "low", "centred", "centred_low"):
        assert getattr(found, name).value == pytest.approx(1)
        assert getattr(found, name).low == pytest.approx(1)


def test_a_large_constant_hides_what_the_centred_cosine_shows() -> None:
    rng = np.random.default_rng(0)
    plain = [100 + rng.normal(size=(20, 6)) for _ in range(3)]
    other = [[100 + rng.normal(size=(20, 6))] for _ in range(3)]
    found = sturdiness("b", 0.1, plain, other, draws(3))
    assert found.cosine.value > 0.999
    assert abs(found.centred.value) < 0.3
    assert found.centred_low.value < found.centred.value


def test_weighted_quantile_is_that_of_repeated_rows() -> None:
    values, weights = np.array([3.0, 1.0, 2.0, 9.0]), np.array([[1, 3, 0, 40], [1, 1, 1, 1]], dtype=float).T
    assert weighted_quantile(values, 0.05, weights) == pytest.approx([1.0, 1.0])
    assert weighted_quantile(values, 0.5, weights) == pytest.approx([9.0, 2.0])


def test_flip_rates_are_counted() -> None:
    key = ("type", "slide")
    plain = [{key: np.array([0])}, {key: np.array([2])}]
    jittered = [
        {(0.0, 0): {key: np.array([0])}, (0.2, 0): {key: np.array([1])}},
        {(0.0, 0): {key: np.array([2])}, (0.2, 0): {key: np.array([2])}},
    ]
    none, some = flip_rates(plain, jittered, draws(2))
    assert (none.strength, none.rate.value, none.rate.high) == (0.0, 0.0, 0.0)
    assert (some.strength, some.rate.value, some.answers) == (0.2, 0.5, 2)


@pytest.mark.parametrize(
    ("given_options", "told"),
    [
        ({"stain": ()}, "stain is"),
        ({"stain": ("macenko", "macenko")}, "twice"),
        ({"stain": ("none",)}, "names none"),
        ({"tiles": 0}, "tiles is 0"),
        ({"jitter": (1.0,)}, "jitter is 1.0"),
        ({"model": "m", "draws": 0}, "a model without jitter"),
    ],
)
def test_options_are_checked(given_options: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        StainConfig(**given_options)
