"""Ruifrok: the colours are given, the strengths are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hed_from_rgb, separate_stains

from histotl.core.errors import StainError, UsageError
from histotl.core.registry import create
from histotl.image.stain.ruifrok import Ruifrok

RUIFROK = ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11])


def test_strengths_are_those_of_scikit_image(tissue: torch.Tensor) -> None:
    """Its third vector is the measured one of DAB, ours stands upright on both: the first two agree closely."""
    transform = Ruifrok(percentile=90.0).fit(tissue)
    pixels = tissue.reshape(-1, 3).numpy()
    stained = pixels[-np.log((pixels + 1.0) / 256).mean(1) >= 0.15]
    # scikit-image takes densities in units of its floor, ln(1e-6); the matrix is of unit vectors in both.
    theirs = separate_stains((stained + 1.0)[None] / 256, hed_from_rgb)[0] * -np.log(1e-6)
    ours = np.array(transform.state["strengths"])
    np.testing.assert_allclose(ours, np.percentile(theirs[:, :2], 90, axis=0), rtol=0.1)


def test_colours_move_from_the_given_to_the_reference() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.gamma(2, 0.4, (4000, 2))
    source, target = (np.array(pair) for pair in (RUIFROK, ([0.56, 0.72, 0.41], [0.22, 0.80, 0.56])))
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (source, target)]
    tiles = torch.from_numpy(np.rint(256 * np.exp(-amounts @ unit[0]) - 1).clip(0, 255).astype(np.uint8)).view(
        1, 40, 100, 3
    )
    strengths = tuple(np.percentile(amounts, 99, axis=0).tolist())
    method = Ruifrok(haematoxylin=tuple(target[0].tolist()), eosin=tuple(target[1].tolist()), strengths=strengths)
    wanted = np.clip(256 * np.exp(-amounts @ unit[1]) - 1, 0, 255).reshape(1, 40, 100, 3)
    assert np.abs(method.fit(tiles)(tiles).numpy() - wanted).mean() < 2


def test_a_slide_of_the_reference_strengths_stays_as_it_is(tissue: torch.Tensor) -> None:
    state = Ruifrok().fit(tissue).state
    itself = Ruifrok(strengths=tuple(state["strengths"])).fit(tissue)
    assert torch.equal(itself(tissue), tissue)


@pytest.mark.parametrize("stain", RUIFROK)
def test_a_section_of_one_stain_is_refused_instead_of_its_noise_being_amplified(paint, stain) -> None:
    with pytest.raises(StainError, match="one of the two stains is absent") as caught:
        Ruifrok().fit(paint(stain, stain))
    assert "--stain none" in caught.value.hint


def test_a_little_of_a_stain_is_enough(paint) -> None:
    """Where Macenko finds no second colour: one pixel in forty has eosin."""
    tiles, eosin = paint(RUIFROK[0], RUIFROK[0]), paint(RUIFROK[1], RUIFROK[1], seed=1)
    tiles.view(-1, 3)[::40] = eosin.view(-1, 3)[::40]
    matrix = np.array(Ruifrok().fit(tiles).matrix)
    assert np.abs(matrix).max() < 5


def test_senseless_arguments_are_refused() -> None:
    for spec in ("source_eosin=(0.65, 0.7, 0.29)", "percentile=0.0", "strengths=(0.0, 1.0)"):
        with pytest.raises(UsageError, match="ruifrok: "):
            create("stain", f"ruifrok({spec})")
