"""Large slides in seconds: a pyramid of pre-encoded JPEG tiles in Aperio layout.

Tissue is one texture, mirrored so that it has no seams and repeated over the slide; smooth random outlines cut it from
a near-white background with the noise of a camera. Inside the tissue and far from it tiles repeat, so a few hundred are
encoded; along the outlines each is composed. Every tile has its own bytes in the file, at its own place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from histotl.wsi.pyramid import shrink

Pixels = npt.NDArray[np.uint8]

TILE = 256
QUALITY = 80
FACTORS = (1, 4, 16)
CELL = 64
"""Level-0 pixels per value of the field whose sign says where tissue is."""

_GLASS, _GLASS_NOISE, _GLASS_TILES = 243, 1.5, 16
_GRAIN = 2.0
"""Camera noise on the texture, in levels; without it painted tissue compresses better than scanned tissue does."""


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Endless tissue: one image at every level's scale, periodic.

    Args:
        levels: By downsample factor: uint8 (period, period, 3), wrapped by a tile's width at the right and below.
        glass: By downsample factor: background tiles.
    """

    levels: dict[int, Pixels]
    glass: dict[int, list[Pixels]]

    @classmethod
    def of(cls, piece: Pixels, seed: int = 0) -> Texture:
        """Mirror a square piece of tissue, its side a multiple of 128 px, into a periodic texture."""
        rng = np.random.default_rng(seed)
        row = np.concatenate([piece, piece[:, ::-1]], axis=1)
        whole = np.concatenate([row, row[::-1]])
        grain = np.rint(rng.normal(0, _GRAIN, whole.shape)).astype(np.int16)
        levels = {1: np.clip(whole + grain, 0, 255).astype(np.uint8)}
        for factor in FACTORS[1:]:
            side = len(whole) // factor
            levels[factor] = shrink(levels[1], side, side)
        wrapped = {f: np.pad(image, ((0, TILE), (0, TILE), (0, 0)), mode="wrap") for f, image in levels.items()}
        glass = {factor: [_glass(rng, factor) for _ in range(_GLASS_TILES)] for factor in FACTORS}
        return cls(levels=wrapped, glass=glass)

    def tile(self, factor: int, x: int, y: int) -> Pixels:
        """A tile of texture at a place in pixels of the level."""
        image = self.levels[factor]
        period = len(image) - TILE
        return image[y % period :, x % period :][:TILE, :TILE]


def _glass(rng: np.random.Generator, factor: int) -> Pixels:
    noise = rng.normal(0, _GLASS_NOISE / math.sqrt(factor), (TILE, TILE, 3))
    return np.clip(np.rint(_GLASS + noise), 0, 255).astype(np.uint8)


def blobs(width: int, height: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Smooth random field over a slide, one value a cell, positive on tissue, which is half of the slide."""
    shape = (math.ceil(height / CELL) + 1, math.ceil(width / CELL) + 1)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(noise, sigma=max(1.0, min(shape) / 20), mode="reflect")
    return (smooth - np.median(smooth)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """A slide to be written.

    Args:
        texture: Its tissue.
        width: Level-0 pixels.
        height: Likewise.
        field: Of :func:`blobs`; None for tissue everywhere.
        shift: Level-0 pixels by which the texture is moved, so that slides differ.
        mpp: Pixel size, µm.
    """

    texture: Texture
    width: int
    height: int
    field: npt.NDArray[np.float32] | None = None
    shift: tuple[int, int] = (0, 0)
    mpp: float = 0.5
    encoded: dict[tuple[int, ...], bytes] = dataclasses.field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write it as a BigTIFF SVS."""
        path.parent.mkdir(parents=True, exist_ok=True)
        per_cm = 1e4 / self.mpp
        with tifffile.TiffWriter(path, bigtiff=True) as tif:
            for factor in self._factors():
                width, height = self.width // factor, self.height // factor
                tif.write(
                    self._tiles(factor, width, height),
                    shape=(height, width, 3),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="rgb",
                    compression="jpeg",
                    compressionargs={"level": QUALITY},
                    subsampling=(2, 2),
                    description=self._description(width, height),
                    resolution=(per_cm / factor, per_cm / factor),
                    resolutionunit="CENTIMETER",
                    metadata=None,
                )
                if factor == 1:
                    self._thumbnail(tif)
        return path

    def _factors(self) -> tuple[int, ...]:
        return tuple(f for f in FACTORS if f == 1 or min(self.width, self.height) // f >= TILE // 2)

    def _tiles(self, factor: int, width: int, height: int) -> Iterator[bytes]:
        for row in range(math.ceil(height / TILE)):
            for column in range(math.ceil(width / TILE)):
                yield self._tile(factor, column * TILE, row * TILE)

    def _tile(self, factor: int, x: int, y: int) -> bytes:
        """Encoded tile at a place in pixels of the level."""
        window = self._window(factor, x, y)
        if window is None or window.min() > 0:
            place = x + self.shift[0] // factor, y + self.shift[1] // factor
            period = len(self.texture.levels[factor]) - TILE
            key = (factor, place[0] % period, place[1] % period)
            if key not in self.encoded:
                self.encoded[key] = _encode(self.texture.tile(factor, *place))
            return self.encoded[key]
        which = (x // TILE * 7 + y // TILE * 3) % _GLASS_TILES
        if window.max() <= 0:
            glass = (factor, which)
            if glass not in self.encoded:
                self.encoded[glass] = _encode(self.texture.glass[factor][which])
            return self.encoded[glass]
        return _encode(self._compose(factor, x, y, window, self.texture.glass[factor][which]))

    def _window(self, factor: int, x: int, y: int) -> npt.NDArray[np.float32] | None:
        """Cells of the field that a tile lies on, with one more at the right and below."""
        if self.field is None:
            return None
        cells = TILE * factor // CELL
        column, row = x * factor // CELL, y * factor // CELL
        window = self.field[row : row + cells + 1, column : column + cells + 1]
        missing = cells + 1 - window.shape[0], cells + 1 - window.shape[1]
        return np.pad(window, ((0, missing[0]), (0, missing[1])), mode="edge") if any(missing) else window

    def _compose(self, factor: int, x: int, y: int, window: npt.NDArray[np.float32], glass: Pixels) -> Pixels:
        cells = len(window) - 1
        smooth = Image.fromarray(window).resize(
            (TILE, TILE), Image.Resampling.BILINEAR, box=(0.5, 0.5, cells + 0.5, cells + 0.5)
        )
        tissue = np.asarray(smooth) > 0
        texture = self.texture.tile(factor, x + self.shift[0] // factor, y + self.shift[1] // factor)
        return np.where(tissue[..., None], texture, glass)

    def _description(self, width: int, height: int) -> str:
        reduced = "" if width == self.width else f" -> {width}x{height}"
        return (
            f"Aperio Image Library (mosaic)\r\n{self.width}x{self.height} ({TILE}x{TILE}){reduced} JPEG/RGB "
            f"Q={QUALITY}|AppMag = {10 / self.mpp:.0f}|MPP = {self.mpp:g}"
        )

    def _thumbnail(self, tif: tifffile.TiffWriter) -> None:
        small = np.full((max(1, self.height // 64), max(1, self.width // 64), 3), _GLASS, np.uint8)
        tif.write(
            small,
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": QUALITY},
            rowsperstrip=small.shape[0],
            description=f"Aperio Image Library (mosaic)\r\n{self.width}x{self.height} -> thumbnail -",
            metadata=None,
        )


def _encode(tile: Pixels) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=QUALITY, colorsubsampling="420")
    return data
