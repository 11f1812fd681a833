"""Weights held in half: the same features as under autocast, and a network that cannot is left alone."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from histotl.backbones._half import hold_half
from histotl.backbones._network import NetworkEmbedder, finish
from histotl.core.registry import create
from histotl.core.values import BackboneCard

CPU = torch.device("cpu")


def embed(embedder: NetworkEmbedder, tiles: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        return embedder(tiles)


@pytest.mark.parametrize("model", ["test_vit", "test_byobnet", "test_efficientnet"])
def test_features_stay_those_of_autocast(model: str, tiles: torch.Tensor) -> None:
    plain, held = (create("backbone", f"timm/{model}(weights='random')").load(CPU) for _ in range(2))
    assert hold_half(held, torch.bfloat16) is held
    assert torch.equal(embed(held, tiles), embed(plain, tiles))
    kinds = {
        type(m): m.weight.dtype for m in held.module.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)
    }
    assert kinds.pop(nn.Conv2d) == torch.bfloat16
    assert kinds.pop(nn.Linear, torch.bfloat16) == torch.bfloat16
    assert set(kinds.values()) == {torch.float32}  # normalisation layers
    assert embed(held, tiles).dtype == torch.float32


class Refuses(nn.Module):
    """Computes its last layer outside autocast, as some networks do for exactness."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = self.body(images).mean((2, 3))
        with torch.autocast("cpu", enabled=False):
            return self.head(mean.float())


class Changes(Refuses):
    """Uses the digits of a weight that half formats do not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        lost = self.head.weight.float() - self.head.weight.to(torch.bfloat16).float()
        return self.body(images).mean((2, 3)).float() @ lost.t() * 1000


@pytest.mark.parametrize(("network", "reason"), [(Refuses, "dtype"), (Changes, "features would change")])
def test_networks_that_need_their_weights_keep_them(
    network: type[nn.Module], reason: str, tiles: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module = network()
    card = BackboneCard(name="x", dim=0, pooling="none", input_px=48, mean=(0.5,) * 3, std=(0.2,) * 3)
    embedder = finish(module, module, card, CPU, arguments={})
    wanted = embed(embedder, tiles)
    with caplog.at_level(logging.INFO):
        assert hold_half(embedder, torch.bfloat16) is embedder
    assert reason in caplog.text
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.equal(embed(embedder, tiles), wanted)


def test_embedders_without_a_network_are_left_alone() -> None:
    scattering = create("backbone", "scattering").load(CPU)
    assert hold_half(scattering, torch.bfloat16) is scattering
