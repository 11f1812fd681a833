"""Augmentations: a view is a function of tile and seed, and each does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import torch

from histotl.core.errors import UsageError
from histotl.core.registry import create
from histotl.image._random import uniform
from histotl.image.augment.blur import Blur
from histotl.image.augment.brightness_contrast import BrightnessContrast
from histotl.image.augment.cutout import Cutout
from histotl.image.augment.d4 import D4, symmetry
from histotl.image.augment.hed_jitter import RUIFROK, HedJitter
from histotl.image.augment.hue import Hue
from histotl.image.augment.jpeg import Jpeg
from histotl.image.augment.mpp_jitter import MppJitter


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


@pytest.mark.parametrize(
    "spec",
    [
        "brightness_contrast(brightness=0.0, contrast=0.0)",
        "hue(max_deg=0.0, saturation=0.0)",
        "blur(max_sigma_px=0.0)",
        "mpp_jitter(scale=0.0)",
        "cutout(side=0.0)",
    ],
)
@pytest.mark.parametrize("shape", [(3, 33, 17, 3), (2, 1, 1, 3), (4, 2, 5, 3)])
def test_without_strength_nothing_changes(spec: str, shape: tuple[int, ...]) -> None:
    tiles = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(create("augment", spec)(tiles, torch.arange(shape[0])), tiles)


@pytest.mark.parametrize(
    "spec",
    [
        *("brightness_contrast(brightness=1.1)", "brightness_contrast(contrast=-0.1)", "hue(max_deg=181.0)"),
        *("hue(saturation=-1.0)", "blur(max_sigma_px=17.0)", "blur(max_sigma_px=-1.0)", "jpeg(least=0)"),
        *("jpeg(most=101)", "jpeg(least=80, most=70)", "mpp_jitter(scale=-0.1)", "mpp_jitter(scale=1.1)"),
        *("cutout(side=1.5)", "cutout(count=0)", "cutout(fill='black')"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        create("augment", spec)
    assert caught.value.hint


def test_not_a_number_is_refused() -> None:
    with pytest.raises(UsageError, match="max_sigma_px is nan"):
        Blur(max_sigma_px=float("nan"))


def test_brightness_moves_the_mean_and_contrast_the_spread() -> None:
    tiles = torch.randint(80, 170, (64, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before, seeds = tiles.double(), torch.arange(64)
    moved = BrightnessContrast(brightness=0.1, contrast=0.0)(tiles, seeds).double()
    shift = moved - before
    assert (shift.amax((1, 2, 3)) - shift.amin((1, 2, 3))).max() == 0  # all levels of a tile by the same
    assert -26 <= shift.min() < -20
    assert 20 < shift.max() <= 26
    spread = BrightnessContrast(brightness=0.0, contrast=0.3)(tiles, seeds).double()
    assert (spread.mean((1, 2, 3)) - before.mean((1, 2, 3))).abs().max() < 0.6
    ratio = spread.std((1, 2, 3)) / before.std((1, 2, 3))
    assert 0.69 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < 1.31


def test_hue_turns_as_scikit_image_measures_it() -> None:
    tiles = torch.randint(0, 256, (16, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    views = Hue(max_deg=30.0, saturation=0.0)(tiles, torch.arange(16))
    before, after = (skimage.color.rgb2hsv(t.numpy()) for t in (tiles, views))
    np.testing.assert_allclose(after[..., 2], before[..., 2], atol=1e-6)
    clear = (before[..., 1] > 0.5) & (before[..., 2] > 0.5)
    for tile in range(16):
        turn = (after[tile][clear[tile]][:, 0] - before[tile][clear[tile]][:, 0] + 0.5) % 1 - 0.5
        assert np.ptp(turn) * 360 < 1.5  # one turn for the whole tile, but for whole levels
        assert abs(np.median(turn)) * 360 <= 30
    stronger = Hue(max_deg=0.0, saturation=0.2)(tiles, torch.arange(16))
    ratio = skimage.color.rgb2hsv(stronger.numpy())[..., 1] / np.maximum(before[..., 1], 1e-9)
    middling = (before[..., 1] > 0.4) & (before[..., 1] < 0.8) & (before[..., 2] > 0.6)
    medians = [np.median(ratio[tile][middling[tile]]) for tile in range(16)]
    assert 0.79 < min(medians) < 0.9
    assert 1.1 < max(medians) < 1.21
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    assert torch.equal(Hue(max_deg=180.0, saturation=1.0)(grey, torch.tensor([3])), grey)


def test_blur_is_the_gaussian_of_scipy(tissue: torch.Tensor) -> None:
    import scipy.ndimage

    seeds = torch.arange(4)
    views = Blur(max_sigma_px=2.0)(tissue, seeds)
    sigmas = uniform(seeds, 1, stream=5)[:, 0].double() * 2
    assert sigmas.max() > 1
    for tile, view, sigma in zip(tissue.numpy(), views.numpy(), sigmas.tolist(), strict=True):
        smooth = tile.astype(np.float64)
        for axis in (0, 1):
            smooth = scipy.ndimage.gaussian_filter1d(smooth, sigma, axis=axis, mode="mirror", radius=6)
        assert np.abs(view - smooth).max() <= 0.502


def test_jpeg_is_what_its_quality_says(tissue: torch.Tensor) -> None:
    import io

    import PIL.Image

    seeds = torch.arange(4)
    views = Jpeg(least=30, most=80)(tissue, seeds)
    for tile, view, draw in zip(tissue.numpy(), views.numpy(), uniform(seeds, 1, stream=6)[:, 0].tolist(), strict=True):
        coded = io.BytesIO()
        PIL.Image.fromarray(tile).save(coded, "JPEG", quality=30 + int(draw * 51), subsampling="4:2:0")
        other = np.asarray(PIL.Image.open(coded)).astype(int)
        loss, theirs = (np.abs(tile - image.astype(int)).mean() for image in (view, other))
        assert 0.97 < loss / theirs < 1.03
        assert np.abs(view - other).mean() < theirs / 4  # encoders differ in how they round
    assert torch.equal(Jpeg(least=70, most=70)(tissue, seeds), Jpeg(least=70, most=70)(tissue, seeds + 9))


def test_mpp_jitter_scales_about_the_centre() -> None:
    side, seeds = 101, torch.arange(40)
    ramp = torch.arange(side, dtype=torch.float64)
    tile = (50 + ramp)[None, :, None].expand(side, side, 3).to(torch.uint8)
    views = MppJitter(scale=0.2)(tile.expand(40, side, side, 3), seeds).double()
    assert (views[:, :, 50] == 100).all()
    slopes = (views[:, 50, 60, 0] - views[:, 50, 40, 0]) / 20
    assert 1 / 1.2 - 0.06 < slopes.min() < 0.9
    assert 1.1 < slopes.max() < 1.26
    assert (views[:, 0] == views[:, 100]).all()  # rows are alike, so they stay alike


def test_cutout_covers_one_square_with_the_colour_asked_for() -> None:
    tiles = torch.randint(0, 200, (200, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    views = Cutout(side=0.25, fill="white")(tiles, torch.arange(200))
    covered = (views == 255).all(-1)
    assert torch.equal(views[~covered], tiles[~covered])
    sizes = covered.sum((1, 2))
    assert sizes.max() == 100
    assert sizes.min() >= 25  # the centre is inside, so at least a quarter is
    assert covered.any(0).all()  # every place of a tile is covered in some view
    means = Cutout(side=0.25)(tiles, torch.arange(200))
    inside = means[covered].view(-1, 3).double()
    wanted = tiles.double().mean((1, 2)).floor().repeat_interleave(sizes, 0)
    assert torch.equal(inside, wanted)
    assert (Cutout(side=0.25, count=3, fill="white")(tiles, torch.arange(200)) == 255).all(-1).sum() > 2 * sizes.sum()
