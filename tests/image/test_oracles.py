"""Stain separation and normalisation against other published implementations: scikit-image and torchstain (MIT)."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import torch
from torchstain.torch.normalizers import TorchMacenkoNormalizer, TorchReinhardNormalizer

from histotl.image._od import od_table
from histotl.image._two_stains import _coordinates, angle_deg
from histotl.image.augment.hed_jitter import RUIFROK
from histotl.image.stain.macenko import Macenko
from histotl.image.stain.reinhard import Reinhard
from histotl.image.stain.ruifrok import Ruifrok

STAINS = [([0.65, 0.70, 0.29], [0.12, 0.97, 0.22]), ([0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581])]


def test_strengths_are_those_of_scikit_image(tissue: torch.Tensor) -> None:
    pixels = tissue.reshape(-1, 3)
    h, e = RUIFROK[0] / np.linalg.norm(RUIFROK[0]), RUIFROK[1] / np.linalg.norm(RUIFROK[1])
    third = np.cross(h, e)
    matrix = np.linalg.inv(np.array([h, e, third / np.linalg.norm(third)]))
    # Theirs are logarithms to the base 1e-6, of levels over 255; ours natural ones, of (level + 1) over 256.
    levels = (pixels.numpy().astype(float) + 1) / 256
    theirs = skimage.color.separate_stains(levels[None], matrix)[0] * -np.log(1e-6)
    ours = _coordinates(np.array([h, e]), od_table()[pixels.numpy()])
    positive = theirs > 0  # theirs cuts at 0
    np.testing.assert_allclose(ours.T[positive], theirs[positive], rtol=1e-5, atol=1e-5)
    strongest = Ruifrok(white=255).estimate(tissue).numbers["strengths"]
    dense = od_table()[pixels.numpy()].mean(1) >= 0.15
    np.testing.assert_allclose(strongest, np.percentile(theirs[dense][:, :2], 99, axis=0), rtol=1e-3)


@pytest.mark.parametrize("stains", STAINS)
def test_macenko_finds_what_torchstain_finds(paint, stains) -> None:
    tiles = paint(*stains)
    flat = tiles.reshape(1, -1, 128, 3)[0]
    theirs = TorchMacenkoNormalizer()
    theirs.fit(flat.permute(2, 0, 1), Io=256)
    found = Macenko(white=255).estimate(tiles).numbers
    for mine, other in zip(found["stains"], theirs.HERef.T.double().numpy(), strict=True):
        assert angle_deg(np.array([mine, other])) < 2.5
    np.testing.assert_allclose(found["strengths"], theirs.maxCRef.numpy(), rtol=0.12)


@pytest.mark.parametrize("stains", STAINS)
def test_macenko_normalises_as_torchstain_does(paint, stains) -> None:
    tiles = paint(*stains)
    flat = tiles.reshape(1, -1, 128, 3)[0]
    theirs, _, _ = TorchMacenkoNormalizer().normalize(flat.permute(2, 0, 1), Io=256, stains=False)
    ours = Macenko(residual="drop", white=255).fit(tiles)(tiles).reshape(theirs.shape)
    difference = (ours.int() - theirs.clamp(0, 255)).abs().float()
    # They take pixels of which every channel is dense, we those that are dense on average: the eosin found differs.
    assert difference.mean() < 3
    before = (tiles.reshape(theirs.shape).int() - theirs.clamp(0, 255)).abs().float()
    assert difference.mean() < 0.3 * before.mean()


def test_reinhard_of_tissue_only_is_torchstains_in_the_papers_space_in_kind(paint) -> None:
    source, target = paint(*STAINS[0]), paint(*STAINS[1], seed=1)
    dense = [od_table()[tiles.numpy()].mean(-1) >= 0.15 for tiles in (source, target)]
    # Strips of tissue only, as theirs has no mask.
    strips = [
        tiles.numpy()[mask][: 128 * 100].reshape(100, 128, 3)
        for tiles, mask in zip((source, target), dense, strict=True)
    ]
    theirs = TorchReinhardNormalizer()
    theirs.fit(torch.from_numpy(strips[1]).permute(2, 0, 1))
    other = theirs.normalize(torch.from_numpy(strips[0]).permute(2, 0, 1))
    own = Reinhard(white=255).towards(Reinhard(white=255).estimate(torch.from_numpy(strips[1])[None]))
    mine = own.fit(torch.from_numpy(strips[0])[None])(torch.from_numpy(strips[0])[None])[0]
    wanted = strips[1].reshape(-1, 3).mean(0)
    for result in (mine.numpy(), other.numpy()):  # two spaces, one aim
        assert np.abs(result.reshape(-1, 3).mean(0) - wanted).max() < 6
    assert np.abs(mine.numpy().astype(float) - other.numpy().astype(float)).mean() < 6
