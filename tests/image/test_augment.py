"""Augmentations: a view is a function of tile and seed, and each does what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.color
import torch

from histotl.core.errors import SpecError, UsageError
from histotl.core.registry import create
from histotl.image._random import uniform
from histotl.image.augment.albumentations import Albumentations
from histotl.image.augment.d4 import D4, symmetry
from histotl.image.augment.hed_jitter import RUIFROK, HedJitter


def splitmix(seed: int, count: int) -> list[int]:
    """SplitMix64's finaliser over a counter, in Python's own unbounded integers."""

    def scramble(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    start = scramble((scramble(seed % 2**64) + 3 * 0x9E3779B97F4A7C15) % 2**64)
    return [scramble((start + i * 0x9E3779B97F4A7C15) % 2**64) >> 40 for i in range(1, count + 1)]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789])
def test_random_bits_equal_the_integer_definition(seed: int) -> None:
    drawn = uniform(torch.tensor([seed]), 5, stream=3)[0]
    assert (drawn.double() * 2**24).tolist() == splitmix(seed, 5)


def test_uniform_is_uniform_and_streams_differ() -> None:
    a, b = (uniform(torch.arange(20_000), 2, stream=s) for s in (1, 2))
    assert 0 <= a.min() < 0.001
    assert 0.999 < a.max() < 1
    assert torch.allclose(a.mean(0), torch.tensor(0.5), atol=0.01)
    everything = torch.cat([a, b], 1).T
    off_diagonal = torch.corrcoef(everything) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.03


def test_d4_uses_all_eight_equally_and_they_form_the_group() -> None:
    tile = torch.arange(48, dtype=torch.uint8).view(1, 4, 4, 3)
    group = {bytes(symmetry(tile, n).numpy()) for n in range(8)}
    assert len(group) == 8
    assert {bytes(symmetry(symmetry(tile, a), b).numpy()) for a in range(8) for b in range(8)} == group
    views = D4()(tile.repeat(4000, 1, 1, 1), torch.arange(4000))
    counts = np.unique(views.flatten(1).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 420


def test_hed_without_jitter_is_the_identity() -> None:
    tiles = torch.randint(0, 256, (3, 33, 17, 3), dtype=torch.uint8)
    assert torch.equal(HedJitter(sigma=0.0, bias=0.0)(tiles, torch.arange(3)), tiles)


def test_hed_scales_the_stains_of_ruifrok(tissue: torch.Tensor) -> None:
    unit = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
    # scikit-image has the first two stains of the same table, and its own third at right angles to them.
    library = skimage.color.rgb_from_hed / np.linalg.norm(skimage.color.rgb_from_hed, axis=1, keepdims=True)
    np.testing.assert_allclose(unit[:2], library[:2], atol=1e-12)
    views = HedJitter(sigma=0.2, bias=0.0)(tissue, torch.arange(4))
    for before, after in zip(tissue.numpy(), views.numpy(), strict=True):
        stains = [-np.log((image.reshape(-1, 3) + 1.0) / 256) @ np.linalg.inv(unit) for image in (before, after)]
        for stain in range(2):
            strong = stains[0][:, stain] > 0.8
            ratio = stains[1][strong, stain] / stains[0][strong, stain]
            assert 0.79 < np.median(ratio) < 1.21
            assert np.subtract(*np.percentile(ratio, [90, 10])) < 0.05  # one factor for the whole tile


def test_hed_jitter_differs_by_seed_and_white_only_moves_by_bias() -> None:
    white = torch.full((64, 8, 8, 3), 255, dtype=torch.uint8)
    seeds = torch.arange(64)
    assert torch.equal(HedJitter(sigma=0.3, bias=0.0)(white, seeds), white)
    moved = HedJitter(sigma=0.3, bias=0.05)(white, seeds)
    assert moved.min() > 220
    assert len(torch.unique(moved[:, 0, 0], dim=0)) > 20


@pytest.mark.parametrize("spec", ["sigma=1.0", "sigma=-0.1", "bias=-0.1"])
def test_senseless_jitter_is_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        create("augment", f"hed_jitter({spec})")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    import albumentations as A

    steps = [A.RandomRotate90(p=1.0), A.RandomBrightnessContrast(p=1.0), A.GaussNoise(p=0.5)]
    A.save(A.Compose(steps), str(tmp_path / "pipeline.json"))
    return tmp_path / "pipeline.json"


def test_albumentations_is_a_function_of_tile_and_seed(pipeline: Path, tissue: torch.Tensor) -> None:
    augment, seeds = create("augment", f"albumentations(pipeline={str(pipeline)!r})"), torch.tensor([5, 2**40, -3, 5])
    views = augment(tissue, seeds)
    assert not torch.equal(views, tissue)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(augment(tissue[order], seeds[order]), views[order])
    same = augment(tissue[:1].repeat(3, 1, 1, 1), torch.tensor([5, 6, 5]))
    assert torch.equal(same[0], same[2])
    assert not torch.equal(same[0], same[1])


def test_albumentations_files_that_do_not_fit_are_refused(tmp_path: Path, tissue: torch.Tensor) -> None:
    import albumentations as A

    path = tmp_path / "p.json"
    for text, said in [(None, "cannot be read"), ("{", "not JSON"), ("{}", "no pipeline"), ("[1]", "no pipeline")]:
        if text is not None:
            path.write_text(text)
        with pytest.raises(UsageError, match=said):
            Albumentations(pipeline=path)(tissue, torch.arange(4))
    A.save(A.Compose([A.Resize(32, 32)]), str(path))
    with pytest.raises(SpecError, match=r"\(32, 32, 3\)"):
        Albumentations(pipeline=path)(tissue, torch.arange(4))
