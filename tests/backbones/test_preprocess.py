"""Preparation: against the plain formula, Pillow's resize, and batch laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.backbones._preprocess import prepare
from histotl.core.values import BackboneCard

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def card(side: int, interpolation: str = "bilinear") -> BackboneCard:
    named = {"name": "x", "dim": 1, "pooling": "avg", "mean": MEAN, "std": STD}
    return BackboneCard(**named, input_px=side, interpolation=interpolation)


def test_normalising_is_the_plain_formula_in_channels_last(tiles: torch.Tensor) -> None:
    ready = prepare(tiles, card(48))
    plain = (tiles.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(ready.double(), plain.permute(0, 3, 1, 2), rtol=0, atol=1e-6)
    assert ready.is_contiguous(memory_format=torch.channels_last)
    assert ready.dtype == torch.float32


@pytest.mark.parametrize("side", [20, 31, 96])
@pytest.mark.parametrize(
    ("mode", "theirs"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_resizing_equals_pillow(tiles: torch.Tensor, side: int, mode: str, theirs: Image.Resampling) -> None:
    ready = prepare(tiles, card(side, mode)).permute(0, 2, 3, 1)
    levels = ((ready * torch.tensor(STD) + torch.tensor(MEAN)) * 255).numpy()
    for tile, level in zip(tiles.numpy(), levels, strict=True):
        wanted = np.asarray(Image.fromarray(tile).resize((side, side), theirs), dtype=float)
        assert np.abs(level - wanted).max() < 1.01


def test_a_tile_does_not_depend_on_its_batch(tiles: torch.Tensor) -> None:
    for side in (48, 32):
        whole = prepare(tiles, card(side))
        assert torch.equal(torch.cat([prepare(tile[None], card(side)) for tile in tiles]), whole)


def test_tiles_with_gaps_in_memory_or_oblong_are_taken(tiles: torch.Tensor) -> None:
    gaps = tiles[:, ::2, ::2]
    assert torch.equal(prepare(gaps, card(24)), prepare(gaps.contiguous(), card(24)))
    assert prepare(tiles[:, :30], card(24)).shape == (5, 3, 24, 24)
    assert prepare(tiles[:0], card(48)).shape == (0, 3, 48, 48)


def test_the_input_is_left_alone(tiles: torch.Tensor) -> None:
    before = tiles.clone()
    prepare(tiles, card(48)).zero_()
    assert torch.equal(tiles, before)
