"""What every backbone keeps, beyond the contract that all plug-ins share: sizes, dark and bright tiles, the card."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from histotl.core.registry import available, create, plugin
from histotl.core.values import FeatureIdentity

# Families cannot be built without a model.
SPECS = [n for n in available("backbone") if dataclasses.MISSING not in plugin("backbone", n).parameters.values()]
SPECS += ["timm/test_vit(weights='random')", "timm/test_byobnet(weights='random', pooling='avg')"]


@pytest.mark.parametrize("spec", SPECS)
def test_backbone(spec: str, tiles: torch.Tensor) -> None:
    embedder = create("backbone", spec).load(torch.device("cpu"))
    card, before = embedder.card, tiles.clone()
    with torch.inference_mode():
        features = embedder(tiles)
        split = torch.cat([embedder(tiles[:1]), embedder(tiles[1:])])
        flat = embedder(torch.stack([torch.full((48, 48, 3), level, dtype=torch.uint8) for level in (0, 255)]))
        larger = embedder(tiles.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(tiles, before)
    assert features.shape == (5, card.dim)
    assert larger.shape == (5, card.dim)
    torch.testing.assert_close(split, features, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(features).all()
    assert torch.isfinite(flat).all()
    assert not torch.allclose(features[0], features[1], atol=1e-4), "the tile plays no part"
    assert len(card.mean) == len(card.std) == 3
    assert len(card.weights_digest) in (0, 64)
    identity = FeatureIdentity.of(card, None, stain="none()", compute="fp32", dtype="fp16")
    assert FeatureIdentity.from_json(identity.to_json()) == identity


@pytest.mark.parametrize("spec", SPECS)
def test_loading_twice_gives_the_same(spec: str, tiles: torch.Tensor) -> None:
    first, second = (create("backbone", spec).load(torch.device("cpu")) for _ in range(2))
    assert first.card == second.card
    with torch.inference_mode():
        assert torch.equal(first(tiles), second(tiles))
