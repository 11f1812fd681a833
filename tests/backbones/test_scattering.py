"""The embedded backbone: its laws, and numpy written straight from the formulas as the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from histotl.backbones._colour import COLOUR_DIM, describe_colour, histogram_quantiles, optical_density, unmix
from histotl.backbones._filters import SIGMA, XI, Octave, envelope_weights, morlet, octave, smooth_even
from histotl.backbones.scattering import DIM, OCTAVES, ORIENTATIONS, TEXTURE_DIM, Scattering, TextureDescriptor
from histotl.core.errors import UsageError
from histotl.core.registry import canonical, create

CPU = torch.device("cpu")
S1, SPARSITY, ORDER_TWO = slice(0, 10), slice(10, 20), slice(20, 100)


def smooth_tiles(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Periodic two-stain tiles with structure at several scales; uint8 (n, height, width, 3)."""
    rng = np.random.default_rng(seed)
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    spectrum = 1 / (0.02 + np.hypot(fy, fx)) ** 1.5
    fields = np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, 2, height, width))) * spectrum).real
    density = 0.4 * np.exp(fields / fields.std((2, 3), keepdims=True) / 2)
    od = np.einsum("nchw,ck->nhwk", density, [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    return torch.from_numpy(np.clip(256 * 10**-od, 0, 255).astype(np.uint8))


def random_maps(side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 2, side, side))).to(torch.float32)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 70), (33, 51)])
def test_shape_dtype_and_resizing(height: int, width: int) -> None:
    embedder = Scattering(input_px=64).load(CPU)
    features = embedder(smooth_tiles(5, height, width))
    assert features.shape == (5, embedder.card.dim) == (5, DIM)
    assert (DIM, TEXTURE_DIM, COLOUR_DIM) == (129, 105, 24)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert embedder(smooth_tiles(5, height, width)[:0]).shape == (0, DIM)


@pytest.mark.parametrize("cuts", [[1, 6], [3, 4], [1, 1, 1, 1, 1, 1, 1], [5, 2]])
def test_any_batch_split_gives_the_same_bits(cuts: list[int]) -> None:
    embedder = Scattering(input_px=96).load(CPU)
    tiles = smooth_tiles(7, 96, 96)
    assert torch.equal(torch.cat([embedder(part) for part in torch.split(tiles, cuts)]), embedder(tiles))


def test_autocast_changes_nothing() -> None:
    embedder = Scattering(input_px=64).load(CPU)
    tiles = smooth_tiles(2, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = embedder(tiles)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, embedder(tiles))


@pytest.mark.parametrize("side", [64, 97, 224])
@pytest.mark.parametrize("move", ["quarter", "half", "mirror", "upside_down", "transpose", "shift"])
def test_turns_flips_and_shifts_change_nothing(side: int, move: str) -> None:
    moves = {
        "quarter": lambda t: t.rot90(1, (1, 2)),
        "half": lambda t: t.rot90(2, (1, 2)),
        "mirror": lambda t: t.flip(2),
        "upside_down": lambda t: t.flip(1),
        "transpose": lambda t: t.transpose(1, 2),
        "shift": lambda t: t.roll((5, 11), (1, 2)),
    }
    embedder = Scattering(input_px=side).load(CPU)
    tiles = smooth_tiles(3, side, side)
    # Other tiles differ by 0.1 to 1; the rest is the modulus sampled at other points.
    torch.testing.assert_close(
        embedder(moves[move](tiles)), embedder(tiles), atol=0.03 if side < 224 else 0.006, rtol=0
    )


def test_a_transposed_rectangle_is_the_same_texture() -> None:
    maps = torch.cat([random_maps(96), random_maps(96, 1)])[..., :64]
    upright, lying = TextureDescriptor(96, 64, CPU), TextureDescriptor(64, 96, CPU)
    torch.testing.assert_close(lying(maps.transpose(2, 3).contiguous()), upright(maps), atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_blank_tile_is_finite_and_has_no_texture(level: int) -> None:
    features = Scattering(input_px=64).load(CPU)(torch.full((2, 64, 64, 3), level, dtype=torch.uint8))
    assert torch.isfinite(features).all()
    texture = features[:, COLOUR_DIM:]
    assert texture[:, S1].max() < math.log(2e-4)
    assert texture[:, 10:].abs().max() < 0.05


def test_texture_ignores_scale_and_offset_of_the_stains() -> None:
    describe, maps = TextureDescriptor(64, 64, CPU), random_maps(64)
    scaled = maps * torch.tensor([3.0, 0.5])[:, None, None] + torch.tensor([2.0, -7.0])[:, None, None]
    torch.testing.assert_close(describe(scaled), describe(maps), atol=2e-3, rtol=0)


def test_same_colours_in_another_arrangement_are_told_apart() -> None:
    embedder = Scattering(input_px=64).load(CPU)
    tiles = smooth_tiles(1, 64, 64)
    order = torch.from_numpy(np.random.default_rng(0).permutation(64 * 64))
    shuffled = tiles.reshape(1, -1, 3)[:, order].reshape(tiles.shape)
    a, b = embedder(tiles)[0], embedder(shuffled)[0]
    torch.testing.assert_close(a[:COLOUR_DIM], b[:COLOUR_DIM], atol=1e-4, rtol=1e-4)
    assert (a - b)[COLOUR_DIM:][S1].abs().max() > 0.5


def test_order_two_sees_what_the_power_spectrum_does_not() -> None:
    """Sparse bursts and noise of the same power spectrum: order-one energy agrees, sparsity and order two do not."""
    rng = np.random.default_rng(0)
    bursts = np.zeros((64, 64))
    bursts[8:24, 8:24] = rng.normal(size=(16, 16))
    noise = np.fft.ifft2(
        np.abs(np.fft.fft2(bursts)) * np.exp(1j * np.angle(np.fft.fft2(rng.normal(size=(64, 64)))))
    ).real
    maps = torch.from_numpy(np.stack([[bursts, bursts], [noise, noise]])).to(torch.float32)
    sparse, dense = TextureDescriptor(64, 64, CPU)(maps)
    energy = sparse[S1] + sparse[SPARSITY] - dense[S1] - dense[SPARSITY]
    assert energy.abs().max() < 0.01
    assert (sparse - dense)[SPARSITY][0] > 0.3
    assert (sparse - dense)[ORDER_TWO].abs().max() > 0.5


def test_first_order_is_a_direct_convolution() -> None:
    """Octave 1 against the Morlet wavelet of the plane, convolved by summing shifted copies in numpy."""
    side, reach, xi, sigma, slant = 48, 11, XI / 2, SIGMA / 2, 4 / ORIENTATIONS
    maps = random_maps(side).numpy().astype(np.float64)[0]
    maps = (maps - maps.mean((1, 2), keepdims=True)) / maps.std((1, 2), keepdims=True)
    means, squares = [], []
    for l in range(ORIENTATIONS):  # noqa: E741
        theta = math.pi * l / ORIENTATIONS
        response = np.zeros((2, side, side), complex)
        for y in range(-reach, reach + 1):
            for x in range(-reach, reach + 1):
                u, v = x * math.cos(theta) + y * math.sin(theta), y * math.cos(theta) - x * math.sin(theta)
                window = math.exp(-((sigma * u) ** 2 + (sigma * slant * v) ** 2) / 2) * sigma**2 * slant / (2 * math.pi)
                wave = complex(math.cos(xi * u), math.sin(xi * u)) - math.exp(-((xi / sigma) ** 2) / 2)
                response += np.roll(maps, (y, x), axis=(1, 2)) * window * wave
        means.append(np.abs(response).mean((1, 2)))
        squares.append((np.abs(response) ** 2).mean((1, 2)))
    features = TextureDescriptor(side, side, CPU)(random_maps(side))[0].numpy()
    s1, ratio = np.mean(means, 0), np.sqrt(np.mean(squares, 0)) / np.mean(means, 0)
    np.testing.assert_allclose(features[S1].reshape(2, OCTAVES)[:, 1], np.log(s1), atol=0.01)
    np.testing.assert_allclose(features[SPARSITY].reshape(2, OCTAVES)[:, 1], np.log(ratio), atol=0.01)


def test_second_order_is_what_the_full_grid_gives() -> None:
    """Energies of |x * psi_1| * psi_3 on the full grid, without windows or subsampling."""
    side, first, second = 64, 1, 3
    maps = random_maps(side).numpy().astype(np.float64)[0]
    maps = (maps - maps.mean((1, 2), keepdims=True)) / maps.std((1, 2), keepdims=True)
    grid = 2 * math.pi * np.fft.fftfreq(side)

    def wavelet(j: int, l: int) -> np.ndarray:  # noqa: E741
        theta = math.pi * l / ORIENTATIONS
        return morlet(grid[:, None], grid[None], theta=theta, xi=XI / 2**j, sigma=SIGMA / 2**j)

    angles: list[list[np.ndarray]] = [[] for _ in range(4)]
    total = []
    for a in range(ORIENTATIONS):
        envelope = np.abs(np.fft.ifft2(np.fft.fft2(maps) * wavelet(first, a)))
        total.append((envelope**2).mean((1, 2)))
        for b in range(ORIENTATIONS):
            energy = (np.abs(np.fft.ifft2(np.fft.fft2(envelope) * wavelet(second, b))) ** 2).mean((1, 2))
            turn = abs(a - b)
            angles[min(turn, ORIENTATIONS - turn)].append(energy)
    expected = np.stack([np.log(np.sqrt(np.mean(e, 0) / np.mean(total, 0))) for e in angles], axis=1)
    features = TextureDescriptor(side, side, CPU)(random_maps(side))[0, ORDER_TWO].view(2, 10, 4)
    pair = [(j, k) for j in range(OCTAVES) for k in range(j + 1, OCTAVES)].index((first, second))
    np.testing.assert_allclose(features[:, pair].numpy(), expected, atol=0.03)


def test_half_spectrum_weights_are_parseval() -> None:
    """The weighted half spectrum equals the energy of the filtered image."""
    first, other = octave(0, 48, 48, 1), octave(1, 48, 48, 1)
    rows, cols = first.shape
    image = np.random.default_rng(0).normal(size=(rows, cols))
    full = np.zeros((rows, cols))
    (cy, cx), (my, mx) = other.centres[0], other.shape
    ky, kx = cy + np.arange(-my // 2, my // 2), cx + np.arange(-mx // 2, mx // 2)
    full[ky[:, None] % rows, kx[None] % cols] = other.gain[0].numpy()
    expected = (np.abs(np.fft.ifft2(np.fft.fft2(image) * full)) ** 2).mean()
    half = np.abs(np.fft.rfft2(image, norm="forward")) ** 2
    assert half.ravel() @ envelope_weights(first, [other]).numpy()[:, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [32, 33, 97, 224])
@pytest.mark.parametrize("j", range(OCTAVES))
def test_windows_are_symmetric_and_inside_reach(side: int, j: int) -> None:
    wavelets: Octave = octave(j, side, side, ORIENTATIONS)
    rows, cols = wavelets.shape
    assert rows % 2 == cols % 2 == 0
    assert max(rows, cols) <= side
    assert not wavelets.gain[:, 0].any()
    assert not wavelets.gain[:, :, 0].any()
    assert all(
        max(abs(cy) + rows // 2, abs(cx) + cols // 2) <= wavelets.reach[0] <= side for cy, cx in wavelets.centres
    )
    # The coarsest period is 53 px: in tiles smaller than that no bin is near the wavelet's centre.
    assert wavelets.gain.amax((1, 2)).min() > (0.5 if side > 53 or j < 4 else 0.02)


def test_wavelets_have_mean_zero() -> None:
    for theta in (0.0, 0.5, 2.0):
        assert morlet(np.zeros(1), np.zeros(1), theta=theta)[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("least", "most", "expected"), [(157, 224, 160), (1, 224, 4), (22.4, 32, 24), (22, 22, 22)])
def test_smooth_even(least: float, most: int, expected: int) -> None:
    assert smooth_even(least, most) == expected


def test_known_densities_are_unmixed() -> None:
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    density = np.random.default_rng(0).uniform(0, 1, (1, 2, 4, 5))
    od = torch.from_numpy(np.einsum("bchw,ck->bkhw", density, vectors)).to(torch.float32)
    np.testing.assert_allclose(unmix(od).numpy(), density, atol=1e-5)


def test_optical_density_of_black_and_white() -> None:
    ends = optical_density(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    torch.testing.assert_close(ends[0, 0, 0], torch.tensor([math.log10(256), 0.0]))


def test_quantiles_agree_with_sorting() -> None:
    values = torch.randn(3, 2, 20_000, generator=torch.Generator().manual_seed(0))
    exact = torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=2).permute(1, 2, 0)
    torch.testing.assert_close(histogram_quantiles(values), exact, atol=0.01, rtol=0)
    assert torch.isfinite(histogram_quantiles(values * 100)).all()


def test_colour_moments_agree_with_numpy() -> None:
    density = torch.rand(2, 3, 30, 20, generator=torch.Generator().manual_seed(1))
    features = describe_colour(density, unmix(density)).numpy()
    flat = density.flatten(2).numpy().astype(np.float64)
    np.testing.assert_allclose(features[:, :3], flat.mean(2), rtol=1e-5)
    np.testing.assert_allclose(features[:, 3:6], np.log(np.sqrt(flat.var(2) + 1e-4)), rtol=1e-5)
    shrink = np.array(
        [[(f.var(1) / (f.var(1) + 1e-4))[[i, j]].prod() ** 0.5 for i, j in ((0, 1), (0, 2), (1, 2))] for f in flat]
    )
    expected = [np.corrcoef(f)[[0, 0, 1], [1, 2, 2]] for f in flat]
    np.testing.assert_allclose(features[:, 6:9], np.array(expected) * shrink, atol=1e-5)


@pytest.mark.parametrize("side", [31, 1, 0, -5])
def test_too_small_is_refused_with_the_size(side: int) -> None:
    with pytest.raises(UsageError, match=f"{side} x {side} px") as caught:
        Scattering(input_px=side).load(CPU)
    assert "32" in caught.value.hint


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="2 x 64 x 64"):
        TextureDescriptor(64, 64, CPU)(random_maps(65))


def test_spec_string_round_trip() -> None:
    built = create("backbone", "scattering(input_px=96)")
    assert built == Scattering(input_px=96)
    assert create("backbone", canonical(built)) == built
    assert canonical(Scattering()) == "scattering(input_px=224)"
