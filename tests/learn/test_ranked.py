"""Figures of ranked lists against their definitions in loops."""

from __future__ import annotations

from collections import Counter

import numpy as np

from histotl.learn.ranked import average_precision_at, majority, recall_at


def test_figures_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(0)
    relevant = rng.random((40, 8)) < 0.3
    total = relevant.sum(1) + rng.integers(1, 6, 40)
    found = recall_at(relevant), average_precision_at(relevant, total)
    for row, n, hit, ap in zip(relevant.tolist(), total.tolist(), *found, strict=True):
        assert hit == (1.0 if any(row) else 0.0)
        precisions = [sum(row[: i + 1]) / (i + 1) for i in range(8) if row[i]]
        np.testing.assert_allclose(ap, sum(precisions) / min(8, n))


def test_a_perfect_list_has_full_marks() -> None:
    relevant = np.array([[True, True, False], [True, True, True], [False, False, False]])
    np.testing.assert_allclose(average_precision_at(relevant, np.array([2, 9, 4])), [1, 1, 0])
    # One relevant row in the third place of three: a third of it.
    np.testing.assert_allclose(average_precision_at(np.array([[False, False, True]]), np.array([1])), [1 / 3])


def test_majority_and_its_ties() -> None:
    rng = np.random.default_rng(1)
    classes = rng.integers(-1, 4, (200, 6))
    for row, found in zip(classes.tolist(), majority(classes, 4).tolist(), strict=True):
        votes = Counter(name for name in row if name >= 0)
        best = [name for name, n in votes.items() if n == max(votes.values())]
        assert found == (min(best, key=row.index) if best else -1)
    assert majority(np.full((1, 3), -1), 4).tolist() == [-1]
