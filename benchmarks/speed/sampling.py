"""Networks of the benchmarks: one that costs nothing, and those of timm with the weights that our backbone has."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEP = 56

_CARD = """
factory = "benchmarks.speed.sampling:Sample"
weights = "own"
pooling = "none"
"""


class Sample(torch.nn.Module):
    """Some pixels of the prepared batch: a vector of constant length from which other tiles can be told."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float (b, 3, h, w) to (b, dim)."""
        return images[:, :, STEP // 2 :: STEP, STEP // 2 :: STEP].flatten(1)


def sample_spec(folder: Path) -> str:
    """Spec of the backbone that costs nothing: a network as users plug theirs in, by a card file."""
    card = folder / "sample.toml"
    card.write_text(_CARD, encoding="utf-8")
    return f"module(card={str(card)!r})"


def timm_spec(name: str) -> str:
    """Spec of a backbone of timm with random weights."""
    return f"timm/{name}(weights='random')"


def network(name: str) -> torch.nn.Module:
    """What other tools run: a plain network that takes normalised float (b, 3, 224, 224), in evaluation mode."""
    if name == "sample":
        return Sample().eval()
    import timm

    from histotl.backbones._network import NetworkEmbedder
    from histotl.core.registry import create

    backbone = create("backbone", timm_spec(name))
    state = cast("NetworkEmbedder", backbone.load(torch.device("cpu"))).module.state_dict()  # type: ignore[attr-defined]
    net: torch.nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    net.load_state_dict(state)
    return net.eval().requires_grad_(requires_grad=False)
