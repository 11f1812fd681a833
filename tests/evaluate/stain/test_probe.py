"""The site probe: what it finds where the answer is known, and that nothing is on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from histotl.core.intervals import Resamples, estimate
from histotl.evaluate.stain.probe import LEAST_GROUPS, held_out_scores, plan_folds, site_auc


def features_of(shift: float, *, slides: int = 6, tiles: int = 8, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Tiles of two sites whose features differ by ``shift``; every slide has an offset of its own."""
    rng = np.random.default_rng(seed)
    site = np.repeat([0, 1], slides)
    slide_mean = rng.normal(size=(2 * slides, 5)) + shift * site[:, None]
    place = np.repeat(np.arange(2 * slides), tiles)
    return slide_mean[place] + 0.1 * rng.normal(size=(len(place), 5)), site, place


def auc_of(features: np.ndarray, site: np.ndarray, place: np.ndarray) -> float:
    groups = [f"slide {i}" for i in range(len(site))]
    plan = plan_folds([str(s) for s in site], groups, unit_name="slide", seed=0)
    scores = held_out_scores(features, plan.site[place], plan.fold[place])
    return estimate(site_auc(scores, site[place], Resamples.draw(place, 20, 0))).value


def test_sites_that_differ_are_told() -> None:
    assert auc_of(*features_of(8.0)) > 0.99


def test_sites_that_do_not_differ_are_not_told_although_every_slide_can_be() -> None:
    # Random splits of tiles would tell the slides apart and answer close to 1.
    found = [auc_of(*features_of(0.0, slides=10, seed=seed)) for seed in range(4)]
    assert 0.35 < np.mean(found) < 0.65


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sites = [["a", "b", "c", ""][i] for i in rng.integers(0, 4, 60)]
    groups = [f"patient {i}" for i in rng.integers(0, 30, 60)]
    plan = plan_folds(sites, groups, unit_name="patient", seed=seed)
    assert not plan.reason
    folds: dict[str, set[int]] = {}
    for group, site, fold in zip(groups, plan.site, plan.fold, strict=True):
        assert (site >= 0) == (fold >= 0)
        if fold >= 0:
            folds.setdefault(group, set()).add(int(fold))
    assert all(len(found) == 1 for found in folds.values())
    for part in np.unique(plan.fold[plan.fold >= 0]):
        trained_on = plan.site[(plan.fold >= 0) & (plan.fold != part)]
        assert set(trained_on) == set(range(len(plan.names))), "a site that no slide was learned from"


def test_a_site_with_one_slide_is_left_out_and_named() -> None:
    sites = ["a"] * 3 + ["b"] * 4 + ["lonely"]
    plan = plan_folds(sites, list("12345678"), unit_name="slide", seed=0)
    assert plan.names == ("a", "b")
    assert plan.site[-1] == plan.fold[-1] == -1
    assert "site 'lonely' has 1 slide:" in plan.notes[0]


@pytest.mark.parametrize("sites", [["a"] * 9, ["a"] * 9 + ["b"] * (LEAST_GROUPS - 1), [""] * 4])
def test_too_few_sites_are_words_and_no_number(sites: list[str]) -> None:
    plan = plan_folds(sites, [str(i) for i in range(len(sites))], unit_name="patient", seed=0)
    assert "it takes 2 to tell apart" in plan.reason
    assert (plan.fold == -1).all()


def test_slides_without_a_site_are_counted() -> None:
    plan = plan_folds(["a", "", "b", "a", "b", "a", "b"], list("1234567"), unit_name="slide", seed=0)
    assert "1 of 7 slides have no site" in plan.notes[0]
    assert not plan.reason
