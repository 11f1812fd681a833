"""Colour comes from Beer-Lambert; sites differ and overlap."""

import numpy as np
import pytest

from histotl.paint.stains import SITES, absorb, brown_stain, expose, rescaled, site_stain


def test_densities_are_found_again_in_the_light():
    rng = np.random.default_rng(0)
    stain = site_stain("A", rng)
    first, second = rng.uniform(0, 1, (2, 40, 30)).astype(np.float32)
    light = absorb(first, second, stain)
    density = -np.log10(light / np.asarray(stain.white))
    found, *_ = np.linalg.lstsq(np.array([stain.first, stain.second]).T, density.reshape(-1, 3).T, rcond=None)
    np.testing.assert_allclose(found.reshape(2, 40, 30), np.stack([first, second]), atol=1e-4)


def test_empty_glass_is_white_and_camera_noise_is_small():
    stain = site_stain("B", np.random.default_rng(1))
    empty = np.zeros((60, 200), np.float32)
    image = expose(absorb(empty, empty, stain), np.random.default_rng(2)).astype(float)
    assert np.abs(image.mean(axis=(0, 1)) - stain.white).max() < 0.3
    assert 0.5 < image.std(axis=(0, 1)).max() < 2.0


def test_sites_differ_on_average_but_overlap():
    rng = np.random.default_rng(3)
    drawn = {site: np.array([site_stain(site, rng).first for _ in range(200)]) for site in SITES}
    gap = np.abs(drawn["A"].mean(axis=0) - drawn["B"].mean(axis=0)).max()
    spread = drawn["A"].std(axis=0).min()
    assert gap > 0.03
    assert gap < 5 * spread
    assert drawn["A"][:, 1].max() > drawn["B"][:, 1].min()


def test_vectors_have_unit_length():
    for stain in (site_stain("A", np.random.default_rng(4)), brown_stain(np.random.default_rng(4))):
        assert np.linalg.norm(stain.first) == pytest.approx(1)
        assert np.linalg.norm(stain.second) == pytest.approx(1)


def test_rescaled_changes_only_the_strengths():
    stain = site_stain("A", np.random.default_rng(5))
    other = rescaled(stain, 0.5, 2.0)
    assert other.strengths == (stain.strengths[0] * 0.5, stain.strengths[1] * 2.0)
    assert (other.first, other.second, other.white) == (stain.first, stain.second, stain.white)
