"""The three transforms on the CPU, against the same in torch, which is what other devices run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.image._planes import map_planes
from histotl.image._transforms import LabTransform, LevelTransform, OdTransform
from histotl.image.stain.base import StainTransform

MATRIX = ((1.12, -0.08, 0.05), (0.03, 0.85, -0.02), (-0.1, 0.2, 1.3))


def transforms() -> list[StainTransform]:
    rising = tuple(int(255 * (level / 255) ** 0.7) for level in range(256))
    return [
        OdTransform(matrix=MATRIX, state={}),
        LabTransform(gain=(1.2, 0.8, 1.4), shift=(-6.0, 4.0, -2.0), state={}),
        LevelTransform(tables=(rising, rising[::-1], rising), state={}),
    ]


@pytest.fixture(scope="module")
def colours() -> torch.Tensor:
    """Every fourth level of each channel, black and the darkest among them: uint8 (4, 512, 128, 3)."""
    steps = np.unique(np.append(np.arange(0, 256, 4), 255)).astype(np.uint8)[:64]
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return torch.from_numpy(cube.reshape(4, 512, 128, 3))


@pytest.mark.parametrize("transform", transforms(), ids=lambda t: type(t).__name__)
def test_the_cpu_gives_what_torch_gives(transform, colours: torch.Tensor) -> None:
    ours, plain = transform(colours).int(), map_planes(colours, transform.on_planes).int()
    assert (ours - plain).abs().max() <= 1
    assert (ours != plain).float().mean() < 2e-3
    assert (ours != colours.int()).float().mean() > 0.5  # it does something


@pytest.mark.parametrize("transform", transforms(), ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 1, 1, 3), (3, 7, 5, 3)])
def test_any_shape(transform, shape: tuple[int, ...]) -> None:
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    found = transform(tiles)
    assert found.shape == tiles.shape
    assert (found.int() - map_planes(tiles, transform.on_planes).int()).abs().max().item() <= 1 if len(tiles) else True


def test_what_a_matrix_makes_brighter_than_white_is_white_and_not_black() -> None:
    brighter = OdTransform(matrix=((-80.0, 0, 0), (0, 1.0, 0), (0, 0, 80.0)), state={})
    tile = torch.full((1, 4, 4, 3), 10, dtype=torch.uint8)
    assert brighter(tile)[0, 0, 0].tolist() == [255, 10, 0]
    assert torch.equal(brighter(tile), map_planes(tile, brighter.on_planes))


def test_threads_do_not_share_their_memory() -> None:
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(1)
    batches = [torch.from_numpy(rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)) for _ in range(24)]
    transform = OdTransform(matrix=MATRIX, state={})
    wanted = [transform(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(transform, batches))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
