"""Macenko: against an independent numpy version, painted stains, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import NoTissueError, SlideError, UsageError
from histotl.core.registry import create
from histotl.image._od import od_table
from histotl.image._transforms import OdTransform
from histotl.image._two_stains import kept_residual
from histotl.image.stain.macenko import Macenko

RUIFROK = ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11])
PAIRS = [RUIFROK, ([0.66, 0.69, 0.30], [0.16, 0.95, 0.27]), ([0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581])]


def reference(pixels: np.ndarray, reference_stains: np.ndarray, reference_max: np.ndarray) -> np.ndarray:
    """The paper's steps, written apart from the package: SVD of the rows, angles, pseudo-inverse, two stains only."""
    density = -np.log((pixels.astype(float) + 1) / 256)
    dense = density[density.mean(1) >= 0.15]
    _, _, rows = np.linalg.svd(dense, full_matrices=False)
    plane = rows[:2] * np.sign(rows[0].sum())
    angles = np.arctan2(dense @ plane[1], dense @ plane[0])
    extremes = [np.array([np.cos(a), np.sin(a)]) @ plane for a in np.percentile(angles, [1, 99])]
    stains = np.array(sorted(extremes, key=lambda v: -v[0]))
    strongest = np.percentile(dense @ np.linalg.pinv(stains), 99, axis=0)
    concentration = density @ np.linalg.pinv(stains) / strongest * reference_max
    unit = reference_stains / np.linalg.norm(reference_stains, axis=1, keepdims=True)
    return np.clip(np.round(256 * np.exp(-concentration @ unit) - 1), 0, 255)


def test_equals_an_independent_version_of_the_paper(tissue: torch.Tensor) -> None:
    normalizer = Macenko(residual="drop")
    ours = normalizer.fit(tissue)(tissue).reshape(-1, 3).numpy().astype(float)
    stains = np.array([normalizer.haematoxylin, normalizer.eosin])
    theirs = reference(tissue.reshape(-1, 3).numpy(), stains, np.array(normalizer.strengths))
    assert np.abs(ours - theirs).max() <= 1  # a level, where rounding falls to the other side
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("swapped", [False, True])
def test_finds_painted_stains_within_two_degrees(paint, pair, *, swapped: bool) -> None:
    tiles = paint(*(pair[::-1] if swapped else pair))
    found = np.array(Macenko().fit(tiles).state["stains"])
    for stain, true in zip(found, pair, strict=True):  # haematoxylin first, whichever was painted first
        cosine = stain @ np.array(true) / np.linalg.norm(true)
        assert np.degrees(np.arccos(min(1.0, cosine))) < 2


def test_two_stainings_of_one_tissue_become_alike(paint) -> None:
    pale, strong = paint(*PAIRS[0]), paint(*PAIRS[2])
    before = (pale.float() - strong.float()).abs().mean()
    after = [Macenko().fit(tiles)(tiles).float() for tiles in (pale, strong)]
    assert (after[0] - after[1]).abs().mean() < 0.35 * before


def test_a_slide_that_is_the_reference_stays_as_it_is(tissue: torch.Tensor) -> None:
    state = Macenko().fit(tissue).state
    h, e = (tuple(v) for v in state["stains"])
    itself = Macenko(haematoxylin=h, eosin=e, strengths=tuple(state["strengths"])).fit(tissue)
    np.testing.assert_allclose(itself.matrix, np.eye(3), atol=1e-9)
    assert torch.equal(itself(tissue), tissue)


def test_the_identity_keeps_every_level_and_white_stays_white() -> None:
    identity = OdTransform(matrix=((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), state={})
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3).contiguous()
    assert torch.equal(identity(levels), levels)
    assert od_table()[255] == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 40), st.integers(1, 40))
def test_any_split_gives_the_same_pixels(seed: int, n: int, h: int, w: int) -> None:
    rng = np.random.default_rng(seed)
    transform = OdTransform(matrix=tuple(map(tuple, rng.normal(0.3, 0.6, (3, 3)).tolist())), state={})
    tiles = torch.from_numpy(rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8))
    cut = int(rng.integers(0, n + 1))
    whole = transform(tiles)
    assert torch.equal(torch.cat([transform(tiles[:cut]), transform(tiles[cut:])]), whole)
    assert torch.equal(transform(tiles.flatten(1, 2)[:, :, None]).view_as(tiles), whole)  # nor on the tile's shape


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_white_stays_white_for_every_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tissue = torch.from_numpy(rng.integers(20, 200, (2, 64, 64, 3), dtype=np.uint8))
    white = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    assert torch.equal(Macenko().fit(tissue)(white), white)


def test_half_precision_around_it_changes_nothing(tissue: torch.Tensor) -> None:
    transform = Macenko().fit(tissue)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = transform(tissue)
    assert torch.equal(under, transform(tissue))


def test_a_view_with_gaps_in_memory_is_read_rightly(tissue: torch.Tensor) -> None:
    transform = Macenko().fit(tissue)
    assert torch.equal(transform(tissue[:, ::2, 1::3]), transform(tissue[:, ::2, 1::3].contiguous()))


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
@pytest.mark.parametrize("dark", [1.0, 1.5, 2.5])
def test_blood_of_a_dark_photograph_does_not_turn_green(paint, method: str, dark: float) -> None:
    tissue = paint(*PAIRS[1])
    density = dark * od_table()[tissue.numpy()]
    # Red cells let red light through and little else; their other channels are clipped on the darkest photograph.
    density[0, :16, :] = dark * np.array([0.15, 1.6, 1.5]) + np.random.default_rng(2).normal(0, 0.02, (16, 128, 3))
    photograph = torch.from_numpy(np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8))
    transform = create("stain", method).fit(photograph)
    red, green, blue = transform(photograph)[0, :16].reshape(-1, 3).float().mean(0).tolist()
    assert red > green + 20
    assert red > blue
    drop = create("stain", f"{method}(residual='drop')").fit(photograph)
    assert (drop(photograph)[0, :16].float() - transform(photograph)[0, :16]).abs().mean() > 1  # it is kept, though


def test_a_tint_of_the_lamp_stays_as_faint_as_it_was_beside_the_stains(paint) -> None:
    tissue = paint(*PAIRS[1])
    tint = np.array([0.25, 0.0, 0.35])  # glass looks green
    photograph = torch.from_numpy(
        np.rint(256 * np.exp(-2.5 * od_table()[tissue.numpy()] - tint) - 1).clip(0, 255).astype(np.uint8)
    )
    glass = od_table()[tissue.numpy()].mean(-1) < 0.02
    colour = Macenko().fit(photograph)(photograph)[torch.from_numpy(glass)].float().mean(0)
    source = photograph[torch.from_numpy(glass)].float().mean(0)
    assert source[1] - source.max(0).values == 0
    assert source[1] - source[[0, 2]].min() > 60
    assert colour[1] - colour[[0, 2]].min() < 30


@pytest.mark.parametrize(
    ("stronger", "kept"), [((0.2, 0.6), 0.2), ((0.7, 3.0), 0.7), ((1.0, 1.0), 1.0), ((2.0, 3.0), 1.0)]
)
def test_the_residual_never_grows_against_the_stains(stronger: tuple[float, float], kept: float) -> None:
    assert kept_residual(np.array(stronger)) == kept


def test_a_large_sample_is_thinned_and_fits_the_same(paint) -> None:
    small = Macenko().fit(paint(*PAIRS[0], n=4)).state
    large = Macenko().fit(paint(*PAIRS[0], n=80)).state
    assert large["pixels"] < 1_000_000
    np.testing.assert_allclose(large["stains"], small["stains"], atol=0.02)
    np.testing.assert_allclose(large["strengths"], small["strengths"], rtol=0.05)


def test_bare_glass_is_refused_with_the_count_and_the_cure() -> None:
    glass = torch.full((1, 64, 64, 3), 240, dtype=torch.uint8)
    with pytest.raises(NoTissueError, match=r"0 of 4096 sampled pixels") as caught:
        Macenko().fit(glass)
    assert "--stain none" in caught.value.hint
    with pytest.raises(NoTissueError, match="0 of 0"):
        Macenko().fit(glass[:0])


@pytest.mark.parametrize("colour", [(0.65, 0.70, 0.29), (1.0, 1.0, 1.0)])
def test_one_stain_is_refused(paint, colour) -> None:
    with pytest.raises(SlideError, match="one colour") as caught:
        Macenko().fit(paint(colour, colour))
    assert "--stain none" in caught.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        "alpha=50.0",
        "alpha=-1.0",
        "beta=0.0",
        "percentile=0.0",
        "strengths=(1.0, 0.0)",
        "eosin=(1.1252, 1.4402, 0.8124)",
    ],
)
def test_senseless_arguments_are_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        create("stain", f"macenko({spec})")
