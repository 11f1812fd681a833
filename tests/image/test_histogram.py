"""Histogram matching: against scikit-image, its laws, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.exposure
import torch

from histotl.core.errors import NoTissueError, SlideError, UsageError
from histotl.core.registry import create
from histotl.image.estimate import Estimate
from histotl.image.stain.histogram import QUANTILES, Histogram


def estimate(tiles: torch.Tensor) -> Estimate:
    return Histogram().estimate(tiles)


def test_equals_scikit_image_where_all_is_tissue(paint) -> None:
    rng = np.random.default_rng(3)
    source = torch.from_numpy(rng.normal(120, 25, (2, 128, 128, 3)).clip(5, 200).astype(np.uint8))
    target = torch.from_numpy(rng.normal((150, 90, 140), 15, (2, 128, 128, 3)).clip(5, 210).astype(np.uint8))
    ours = Histogram().towards(estimate(target)).fit(source)(source).numpy().astype(int)
    theirs = skimage.exposure.match_histograms(
        source.reshape(-1, 1, 3).numpy(), target.reshape(-1, 1, 3).numpy(), channel_axis=-1
    ).reshape(ours.shape)
    inner = np.ones(ours.shape, bool)
    for channel in range(3):
        low, high = np.percentile(source[..., channel], [1, 99])
        inner[..., channel] = (source[..., channel].numpy() > low) & (source[..., channel].numpy() < high)
    difference = np.abs(ours - theirs)[inner]
    assert difference.max() <= 3  # straight lines between 15 quantiles; theirs cuts where ours rounds
    assert difference.mean() < 1.0


def test_the_reference_quantiles_are_reached(tissue: torch.Tensor) -> None:
    normal = Histogram().fit(tissue)(tissue)
    reached = estimate(normal).numbers["levels"]
    wanted = np.array([Histogram().red, Histogram().green, Histogram().blue])
    inner = slice(2, len(QUANTILES) - 2)  # the outer ones move with what counts as stained afterwards
    assert np.abs(reached - wanted)[:, inner].max() < 8


def test_a_slide_that_is_the_reference_stays_as_it_is(tissue: torch.Tensor) -> None:
    itself = Histogram().towards(estimate(tissue)).fit(tissue)(tissue)
    assert (itself.int() - tissue.int()).abs().max() <= 1
    assert ((itself != tissue).float().mean()) < 0.01


def test_tables_never_fall_and_keep_white_and_black(tissue: torch.Tensor) -> None:
    tables = np.array(Histogram().fit(tissue).tables)
    assert (np.diff(tables, axis=1) >= 0).all()
    assert (tables[:, 255] == 255).all()
    assert (tables[:, 0] == 0).all()


def test_a_channel_with_few_levels_keeps_its_order() -> None:
    steps = torch.tensor([60, 60, 60, 90, 150, 150], dtype=torch.uint8).repeat(1000)
    tiles = steps.view(1, 60, 100, 1).expand(-1, -1, -1, 3).contiguous()
    tables = np.array(Histogram().fit(tiles).tables)
    assert (tables[:, 60] < tables[:, 90]).all()
    assert (tables[:, 90] < tables[:, 150]).all()


def test_glass_and_flat_colour_are_refused() -> None:
    with pytest.raises(NoTissueError, match="0 of 4096"):
        Histogram().fit(torch.full((1, 64, 64, 3), 240, dtype=torch.uint8))
    with pytest.raises(SlideError, match="flat colour"):
        Histogram().fit(torch.full((1, 64, 64, 3), 90, dtype=torch.uint8))


@pytest.mark.parametrize("levels", ["(1.0, 2.0)", str((9.0, *range(14))), str((*range(14), 256.0))])
def test_senseless_references_are_refused(levels: str) -> None:
    with pytest.raises(UsageError, match="histogram: red"):
        create("stain", f"histogram(red={levels})")
