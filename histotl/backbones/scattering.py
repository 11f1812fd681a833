"""The embedded backbone: colour statistics and a wavelet-scattering texture descriptor; no weights, no training.

Pixels become optical density, ``od = -log10((I + 1) / 256)``, and haematoxylin and eosin densities by the stain vectors
of Ruifrok & Johnston (2001). Colour is described by moments and quantiles of these. Texture is described by a
scattering transform (Mallat 2012; Bruna & Mallat 2013) of the two densities, each standardised within the tile, so that
stain strength drops out. With wavelets ``ψ_{j,θ}`` (``_filters.py``), the envelope ``U_{j,θ} = |x ∗ ψ_{j,θ}|`` and
``⟨·⟩`` the mean over the tile:

    s1[j]        = mean_θ ⟨U⟩                                       how much there is at a scale
    e1[j]        = (mean_θ ⟨U²⟩)^½                                  stored as log(e1 / s1): how sparse it is
    e2[j, k, δ]  = (mean_θ ⟨|U_{j,θ} ∗ ψ_{k,θ±δ}|²⟩)^½,  k > j      stored as log(e2 / e1): how it is arranged
    coh[j]       = mean_θ Re⟨(h ∗ ψ)(e ∗ ψ)*⟩ / (e1_h e1_e)         how the two stains go together at a scale

Order two keeps only the angle ``δ`` between its wavelets, without sign (Sifre & Mallat 2013), and is relative to order
one (Bruna & Mallat 2013, "renormalised"). Its last modulus is taken in the second moment instead of the first: by
Parseval that is a weighted sum of the power spectrum of ``U``, so order two needs no inverse transforms at all.

Quarter turns, flips and cyclic shifts of the tile change nothing (it is taken as periodic), but for what the sampling
of the modulus on coarser grids leaves: below 0.006 at 224 px, where tiles differ by 0.1 to 1.

Sources: Mallat, Group invariant scattering, CPAM 2012. Bruna & Mallat, Invariant scattering convolution networks, TPAMI
2013. Sifre & Mallat, Rotation, scaling and deformation invariant scattering for texture discrimination, CVPR 2013.
Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol 2001.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histotl.backbones._colour import COLOUR_DIM, describe_colour, optical_density, standardise, unmix
from histotl.backbones._filters import Octave, envelope_weights, octave
from histotl.backbones._preprocess import prepare
from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.core.values import BackboneCard

OCTAVES = 5
ORIENTATIONS = 6
LEAST_PX = 32
"""Smaller tiles have no room for a period of octave 3 (26 px). That of octave 4 is 53 px: it says little below that."""

_LOG_FLOOR = 1e-4
_CPU_CHUNK, _GPU_CHUNK = 4, 128  # on a CPU the maps of a chunk should stay in its cache

_PAIRS = [(j, k) for j in range(OCTAVES) for k in range(j + 1, OCTAVES)]
_ANGLES = ORIENTATIONS // 2 + 1
TEXTURE_DIM = 2 * (2 * OCTAVES + len(_PAIRS) * _ANGLES) + OCTAVES
DIM = COLOUR_DIM + TEXTURE_DIM


@register("backbone", "scattering")
@dataclass(frozen=True, kw_only=True)
class Scattering:
    """Colour statistics and rotation-averaged wavelet scattering; needs no weights.

    Args:
        input_px: Tiles of another size are resized to this side; at least 32.
    """

    input_px: int = 224

    def load(self, device: torch.device) -> ScatteringEmbedder:
        """Build the filters on the device."""
        return ScatteringEmbedder(self.input_px, device)


class ScatteringEmbedder:
    """Resizes tiles to the card's input size and describes them by 129 numbers: 24 of colour, then 105 of texture."""

    def __init__(self, input_px: int, device: torch.device) -> None:
        self.card = BackboneCard(
            name="scattering",
            dim=DIM,
            pooling="mean",
            input_px=input_px,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            licence="Apache-2.0",
            fp32_only=True,
        )
        self._texture = TextureDescriptor(input_px, input_px, device)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed uint8 RGB (b, h, w, 3) into float32 (b, dim)."""
        # Half formats have neither the range for power spectra nor an FFT of every size.
        with torch.autocast(tiles.device.type, enabled=False):
            size = _CPU_CHUNK if tiles.device.type == "cpu" else _GPU_CHUNK
            parts = [self._describe(part) for part in torch.split(tiles, size) if len(part)]
            return torch.cat(parts) if parts else torch.zeros(0, DIM, device=tiles.device)

    def _describe(self, tiles: torch.Tensor) -> torch.Tensor:
        density = optical_density(prepare(tiles, self.card))
        stains = unmix(density)
        return torch.cat([describe_colour(density, stains), self._texture(stains)], dim=1)


class TextureDescriptor:
    """Rotation-averaged scattering of order one and two of two registered maps of one size.

    Args:
        height: Of the maps, pixels, at least 32.
        width: The same.
        device: Where the filters live.

    Raises:
        UsageError: The maps are too small.
    """

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        if min(height, width) < LEAST_PX:
            cure = f"use tiles of at least {LEAST_PX} x {LEAST_PX} px; 224 is usual"
            raise UsageError(f"scattering of {height} x {width} px: too small for {OCTAVES} octaves", hint=cure)
        octaves = [octave(j, height, width, ORIENTATIONS) for j in range(OCTAVES)]
        self._size = (height, width)
        self._octaves = octaves
        self._gains = [o.gain.to(device) for o in octaves]
        self._weights = [envelope_weights(o, octaves[j + 1 :]).to(device) for j, o in enumerate(octaves[:-1])]
        self._fold = _angle_fold().to(device)

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        """Describe maps (b, 2, h, w) by (b, 105) numbers that do not depend on the maps' scale and offset.

        In this order, the stains outermost within each: log s1 (5 octaves each), log e1/s1 (5 each), log e2/e1
        (40 each; pairs of octaves, then relative angles 0, 30, 60, 90 degrees), and the coherence (5).
        """
        if maps.shape[1:] != (2, *self._size):
            want = " x ".join(map(str, (2, *self._size)))
            raise UsageError(f"maps are {tuple(maps.shape[1:])}, the filters are for {want}", hint="resize the maps")
        spectrum = torch.fft.fft2(standardise(maps)[0], norm="forward")
        s1, e1, e2, coherence = [], [], [], []
        for j, (wavelets, gain) in enumerate(zip(self._octaves, self._gains, strict=True)):
            response = torch.fft.ifft2(_windows(spectrum, wavelets) * gain, norm="forward")
            re, im = response.real, response.imag
            power = torch.addcmul(re * re, im, im)
            envelope = power.sqrt()
            s1.append(envelope.mean((2, 3, 4)))
            e1.append(power.mean((2, 3, 4)).sqrt())
            joint = torch.addcmul(re[:, 0] * re[:, 1], im[:, 0], im[:, 1]).mean((1, 2, 3))
            coherence.append(joint / (e1[-1].prod(1) + _LOG_FLOOR**2))
            if j < OCTAVES - 1:
                second = self._second_order(envelope, self._weights[j])
                e2.append(_log_ratio(second.sqrt(), e1[-1][:, :, None, None]))
        first, rms = torch.stack(s1, 2), torch.stack(e1, 2)
        order_two = torch.cat(e2, 2).flatten(1)
        parts = [(first + _LOG_FLOOR).log().flatten(1), _log_ratio(rms, first).flatten(1), order_two]
        return torch.cat([*parts, torch.stack(coherence, 1)], dim=1)

    def _second_order(self, envelope: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Mean energies (b, 2, coarser octaves, relative angles) of envelopes (b, 2, orientations, rows, cols)."""
        b, c, n = envelope.shape[:3]
        half = torch.fft.rfft2(envelope, norm="forward")
        power = torch.addcmul(half.real * half.real, half.imag, half.imag).view(b, c * n, -1)
        # One product per tile, all of one shape, so that the order of summation does not depend on the batch.
        energy = torch.stack([p @ weights for p in power]).view(b, c, n, -1, ORIENTATIONS)
        return (energy[..., None] * self._fold[:, None]).sum((2, 4))


def _windows(spectrum: torch.Tensor, wavelets: Octave) -> torch.Tensor:
    """Cut the window of every wavelet out of spectra (b, c, h, w): (b, c, orientations, rows, cols)."""
    (ry, rx), (rows, cols) = wavelets.reach, wavelets.shape
    near = torch.cat([spectrum[..., -ry:, :], spectrum[..., : ry + 1, :]], dim=-2)
    near = torch.cat([near[..., -rx:], near[..., : rx + 1]], dim=-1)
    corners = [(ry + cy - rows // 2, rx + cx - cols // 2) for cy, cx in wavelets.centres]
    return torch.stack([near[..., y : y + rows, x : x + cols] for y, x in corners], dim=2)


def _angle_fold() -> torch.Tensor:
    """Weights (orientations, orientations, angles) that average over pairs with the same unsigned relative angle."""
    fold = torch.zeros(ORIENTATIONS, ORIENTATIONS, _ANGLES)
    for first in range(ORIENTATIONS):
        for second in range(ORIENTATIONS):
            turn = (second - first) % ORIENTATIONS
            fold[first, second, min(turn, ORIENTATIONS - turn)] = 1
    return fold / fold.sum((0, 1))


def _log_ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return ((numerator + _LOG_FLOOR) / (denominator + _LOG_FLOOR)).log()
