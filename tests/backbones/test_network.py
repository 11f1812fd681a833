"""The shared embedder: memory that is used again never shows, and a tile's features do not depend on its batch."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from histotl.backbones._network import NetworkEmbedder, finish
from histotl.backbones._preprocess import Scratch, prepare
from histotl.core.registry import create
from histotl.core.values import BackboneCard

CPU = torch.device("cpu")
CARD = BackboneCard(
    name="x", dim=0, pooling="none", input_px=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), weights="random"
)


def load(module: nn.Module) -> NetworkEmbedder:
    return finish(module, module, CARD, CPU, arguments={})


def noise(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a.double() - b.double()).norm(dim=1) / b.double().norm(dim=1)).max())


def test_prepared_batches_take_the_same_memory_again() -> None:
    scratch = Scratch()
    first = prepare(noise(4), CARD, scratch=scratch)
    second = prepare(noise(3, seed=1), CARD, scratch=scratch)
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(second, prepare(noise(3, seed=1), CARD))
    larger = prepare(noise(9), CARD, scratch=scratch)
    assert torch.equal(larger, prepare(noise(9), CARD))
    assert larger.is_contiguous(memory_format=torch.channels_last)


class Through(nn.Module):
    """Hands its input on as its features, without a copy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


def test_a_network_that_hands_its_input_through_keeps_its_features() -> None:
    embedder = load(Through())
    with torch.inference_mode():
        first = embedder(noise(4))
        kept = first.clone()
        embedder(noise(4, seed=1))
    assert torch.equal(first, kept)
    assert torch.equal(first, prepare(noise(4), CARD).permute(0, 2, 3, 1).flatten(1))


def test_threads_have_memory_of_their_own() -> None:
    embedder = load(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()))
    batches = [noise(4, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        wanted = [embedder(batch) for batch in batches]
    wrong: list[int] = []
    together = threading.Barrier(len(batches))

    def work(index: int) -> None:
        together.wait()
        with torch.inference_mode():
            same = [torch.equal(embedder(batches[index]), wanted[index]) for _ in range(50)]
        wrong.extend(index for good in same if not good)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_inside_and_outside_inference_mode() -> None:
    embedder = load(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()))
    with torch.inference_mode():
        inside = embedder(noise(4))
    assert torch.equal(embedder(noise(4)), inside)
    with torch.inference_mode():
        assert torch.equal(embedder(noise(4)), inside)


def test_under_autocast_the_input_is_made_in_the_half_format() -> None:
    seen: list[torch.dtype] = []

    class Looks(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.dtype)
            return super().forward(images)

    torch.manual_seed(0)
    embedder = load(Looks(nn.Conv2d(3, 8, 3), nn.Flatten()))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = embedder(noise(4))
        rounded_by_the_layer = embedder.module(prepare(noise(4), CARD)).float()
    assert seen == [torch.float32, torch.bfloat16, torch.float32]  # the first is the dry run at loading
    assert half.dtype == torch.float32
    assert torch.equal(half, rounded_by_the_layer)
    exact = prepare(noise(4), CARD)
    assert torch.equal(prepare(noise(4), CARD, dtype=torch.bfloat16), exact.to(torch.bfloat16))


SPECS = [
    "timm/mobilenetv3_small_100(weights='random', input_px=64)",
    "timm/test_resnet(weights='random')",
    "timm/test_vit(weights='random')",
    "scattering(input_px=64)",
    "color_stats",
]


@pytest.mark.parametrize("spec", SPECS)
def test_any_batch_size_gives_the_same_features(spec: str) -> None:
    embedder = create("backbone", spec).load(CPU)
    # Noise alone is one and the same tile to a texture descriptor: brightness that varies tells them apart.
    tiles = (noise(71, 64) * torch.linspace(0.3, 1, 71).view(-1, 1, 1, 1)).to(torch.uint8)
    with torch.inference_mode():
        wanted = torch.cat([embedder(part) for part in tiles.split(64)])
        for size in (7, 32):
            assert relative(torch.cat([embedder(part) for part in tiles.split(size)]), wanted) <= 1e-6, size
        assert relative(torch.cat([embedder(tile[None]) for tile in tiles[:6]]), wanted[:6]) <= 1e-6
        padded = torch.cat([tiles[:7], torch.zeros(25, 64, 64, 3, dtype=torch.uint8)])
        assert relative(embedder(padded)[:7], wanted[:7]) <= 1e-6
    assert relative(wanted[:1], wanted[-1:]) > 1e-3
