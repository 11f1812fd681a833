"""The three transforms on the CPU, against the same in torch, which is what other devices run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.image import _host
from histotl.image._planes import map_planes
from histotl.image._transforms import LabTransform, LevelTransform, OdTransform, Unchanged
from histotl.image.stain.base import StainTransform

MATRIX = ((1.12, -0.08, 0.05), (0.03, 0.85, -0.02), (-0.1, 0.2, 1.3))


def transforms() -> list[StainTransform]:
    rising = tuple(255 * (level / 255) ** 0.7 for level in range(256))
    return [
        OdTransform(matrix=MATRIX, state={}),
        OdTransform(matrix=MATRIX, state={}, offset=(-0.12, 0.03, -0.05)),
        LabTransform(gain=(1.2, 0.8, 1.4), shift=(-6.0, 4.0, -2.0), state={}),
        LabTransform(
            gain=(1.2, 0.8, 1.4),
            shift=(-6.0, 4.0, -2.0),
            state={},
            white=(225.0, 220.5, 228.0),
            glass=(250.0, 246.0, 239.5),
        ),
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
def test_the_levels_before_rounding_are_those_of_torch_and_round_to_the_pixels(
    transform, colours: torch.Tensor
) -> None:
    levels = transform(colours, dtype=torch.float32)
    plain = map_planes(colours, transform.on_planes, dtype=torch.float32)
    for found, pixels in ((levels, transform(colours)), (plain, map_planes(colours, transform.on_planes))):
        off = (found.round() - pixels).abs()
        assert off.max() <= 1
        assert ((found - found.floor() - 0.5).abs()[off > 0] < 1e-3).all()
    # Two ways of rounding in single precision; the linear light of saturated cyans cancels to a thousandth of itself.
    assert (levels - plain).abs().max() < (5e-3 if isinstance(transform, LabTransform) else 1e-3)


def test_identities_and_white_hold_before_rounding(colours: torch.Tensor, tissue: torch.Tensor) -> None:
    density = OdTransform(matrix=((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), state={})
    lab = LabTransform(gain=(1.0,) * 3, shift=(0.0,) * 3, state={})
    table = LevelTransform(tables=(tuple(range(256)),) * 3, state={})
    for same in (density, lab, table, Unchanged(state={})):
        for pixels in (tissue,) if same is lab else (tissue, colours):
            assert (same(pixels, dtype=torch.float32) - pixels).abs().max() < 1e-3
            if not isinstance(same, Unchanged):
                assert (map_planes(pixels, same.on_planes, dtype=torch.float32) - pixels).abs().max() < 1e-3
    assert (lab(colours, dtype=torch.float32) - colours).abs().max() < 3e-3  # at saturated cyans, see above
    white = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    restained = OdTransform(matrix=MATRIX, state={})
    assert (restained(white, dtype=torch.float32) - 255).abs().max() < 1e-3
    assert (map_planes(white, restained.on_planes, dtype=torch.float32) - 255).abs().max() < 1e-3


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


def test_each_tile_may_have_a_matrix_and_densities_of_its_own(colours: torch.Tensor) -> None:
    matrices = np.stack([np.eye(3) * factor for factor in (0.7, 1.0, 1.3, 1.6)])
    added = np.array([[0.1, 0.0, -0.1]]) * np.arange(4)[:, None]
    for some in (None, added[1:2], added):
        together = _host.restained(colours, matrices, some)
        for i in range(4):
            own = None if some is None else some[i % len(some)][None]
            assert torch.equal(together[i], _host.restained(colours[i : i + 1], matrices[i], own)[0])


def test_threads_do_not_share_their_memory() -> None:
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(1)
    batches = [torch.from_numpy(rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)) for _ in range(24)]
    transform = OdTransform(matrix=MATRIX, state={})
    wanted = [transform(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(transform, batches))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
