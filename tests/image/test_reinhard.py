"""Reinhard: colour space against scikit-image, statistics reached, laws."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import torch

from histotl.core.errors import NoTissueError, SlideError
from histotl.image._lab import lab_of_levels, levels_of_lab
from histotl.image._transforms import LabTransform
from histotl.image.stain.reinhard import Reinhard


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """Every 5th level of each channel, and the ends: (n, 3) uint8."""
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)


def test_lab_equals_scikit_image(colours: np.ndarray) -> None:
    ours = torch.stack(lab_of_levels(torch.from_numpy(colours.T.copy()).unbind(0)), 1).numpy()
    np.testing.assert_allclose(ours, skimage.color.rgb2lab(colours[None])[0], atol=2e-3)


def test_lab_and_back_is_every_level(colours: np.ndarray) -> None:
    planes = torch.from_numpy(colours.T.copy()).unbind(0)
    back = torch.stack(levels_of_lab(lab_of_levels(planes)), 1).clamp(0, 255).to(torch.uint8).numpy()
    assert (back == colours).all()


def test_back_from_lab_equals_scikit_image() -> None:
    rng = np.random.default_rng(0)
    lab = np.column_stack([rng.uniform(35, 95, 5000), rng.uniform(-45, 45, (5000, 2))])
    rgb = skimage.color.lab2rgb(lab)
    inside = (rgb > 0.01).all(1) & (rgb < 0.99).all(1)  # scikit-image clips out-of-gamut colours at another step
    ours = torch.stack(levels_of_lab(torch.from_numpy(lab.T.astype(np.float32)).unbind(0)), 1).numpy() - 0.5
    assert inside.sum() > 1000
    np.testing.assert_allclose(ours[inside], rgb[inside] * 255, atol=0.02)


def test_the_reference_statistics_are_reached(tissue: torch.Tensor) -> None:
    dense = tissue[:, :, :, 1] < 200
    target = Reinhard(mean=(60.0, 20.0, -12.0), std=(6.0, 4.0, 3.0))  # a spread that clips no colour
    lab = skimage.color.rgb2lab(target.fit(tissue)(tissue).numpy())[dense.numpy()]
    np.testing.assert_allclose(lab.mean(0), target.mean, atol=2.0)
    np.testing.assert_allclose(lab.std(0), target.std, rtol=0.2)


def test_a_slide_that_is_the_reference_stays_as_it_is(tissue: torch.Tensor) -> None:
    state = Reinhard().fit(tissue).state
    itself = Reinhard(mean=tuple(state["mean"]), std=tuple(state["std"])).fit(tissue)
    assert torch.equal(itself(tissue), tissue)


def test_statistics_are_of_tissue_only(tissue: torch.Tensor) -> None:
    glass = torch.full_like(tissue, 245)
    plain = Reinhard(white=255)
    assert plain.fit(torch.cat([tissue, glass])).state == plain.fit(tissue).state


def test_any_split_gives_the_same_pixels(tissue: torch.Tensor) -> None:
    transform = LabTransform(gain=(1.3, 0.7, 1.1), shift=(-9.0, 3.0, 1.0), state={})
    parts = [transform(tissue[:1, :50]), transform(tissue[:1, 50:])]
    assert torch.equal(torch.cat(parts, dim=1), transform(tissue)[:1])


def test_glass_and_flat_colour_are_refused() -> None:
    with pytest.raises(NoTissueError, match="0 of 4096") as caught:
        Reinhard().fit(torch.full((1, 64, 64, 3), 240, dtype=torch.uint8))
    assert "--stain none" in caught.value.hint
    with pytest.raises(SlideError, match="flat colour"):
        Reinhard().fit(torch.full((1, 64, 64, 3), 90, dtype=torch.uint8))
