"""The expected calibration error against its definition in a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histotl.evaluate.calibration import curve_bins, equal_mass_bins, expected_calibration_error


@given(st.integers(1, 200), st.integers(0, 1000))
def test_bins_have_equal_mass_and_follow_the_order(n: int, seed: int) -> None:
    confidence = np.random.default_rng(seed).random(n)
    bins = equal_mass_bins(confidence)
    sizes = np.bincount(bins)
    assert len(sizes) == min(15, n)
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(bins[np.argsort(confidence)]) >= 0).all()


def test_equal_probabilities_share_a_bin() -> None:
    confidence = np.array([0.5] * 50 + [0.9] * 50)
    assert len(np.unique(equal_mass_bins(confidence))) == 2
    assert len(np.unique(equal_mass_bins(np.full(9, 0.7)))) == 1


def test_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(150)
    correct = rng.random(150) < confidence**2
    ranked = np.argsort(confidence)
    expected = sum(abs(confidence[part].mean() - correct[part].mean()) * 10 for part in ranked.reshape(15, 10)) / 150
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_weights_count_rows() -> None:
    rng = np.random.default_rng(1)
    confidence, times = rng.random(60), rng.integers(0, 3, (60, 2))
    correct, bins = rng.random(60) < 0.5, equal_mass_bins(confidence)
    ours = expected_calibration_error(confidence, correct, bins, times.astype(np.float64))
    for b in range(2):
        rows = np.repeat(np.arange(60), times[:, b])
        repeated = expected_calibration_error(confidence[rows], correct[rows], bins[rows])
        assert ours[b] == pytest.approx(repeated, abs=1e-12)


@given(st.integers(1, 400), st.integers(0, 1000))
def test_the_drawn_curve_has_ten_rows_a_bin(n: int, seed: int) -> None:
    sizes = np.bincount(curve_bins(np.random.default_rng(seed).random(n)))
    assert sizes.min() >= min(n, 10)
    assert len(sizes) == (15 if n >= 150 else max(1, n // 10))
