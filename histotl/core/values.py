"""The values that flow between the rooms. All frozen, all keyword-only.

path → SlideInfo → TileSpec (the wish) → TileGrid (the plan) → tile batches → BackboneCard → FeatureIdentity
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError
from histotl.core.spec import split_version
from histotl.core.units import nominal_magnification

Edge = Literal["drop", "pad"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a slide's pyramid.

    Args:
        width: Pixels.
        height: Pixels.
        downsample: Level-0 pixels per pixel of this level; rarely a whole number (3.9998).
    """

    width: int
    height: int
    downsample: float


@dataclass(frozen=True, kw_only=True)
class SlideInfo:
    """What is known of a slide before any pixel is read.

    Args:
        path: The file.
        slide_id: Name of the slide in every output; the file's stem unless a manifest says otherwise.
        reader: Registered name of the reader that opened it.
        vendor: Scanner or format as the reader names it.
        width: Level-0 pixels.
        height: Level-0 pixels.
        mpp_x: Micrometres per level-0 pixel in x.
        mpp_y: The same in y.
        mpp_source: Where the pixel size came from: a metadata key, ``manifest`` or ``--mpp-override``.
        levels: The pyramid, finest first; at least one.
        bounds_l0: (x, y, width, height) of the scanned area in level-0 pixels.
        background: RGB of empty glass, for areas that the scanner never imaged.
        fingerprint: Digest of size, modification-proof header and tail bytes; changes when the slide's file does.
    """

    path: Path
    slide_id: str
    reader: str
    vendor: str
    width: int
    height: int
    mpp_x: float
    mpp_y: float
    mpp_source: str
    levels: tuple[Level, ...]
    bounds_l0: tuple[int, int, int, int]
    background: tuple[int, int, int] = (255, 255, 255)
    fingerprint: str = ""

    @property
    def mpp(self) -> float:
        """Mean of the two pixel sizes, µm per level-0 pixel."""
        return (self.mpp_x + self.mpp_y) / 2


@dataclass(frozen=True, kw_only=True)
class TileSpec:
    """The tiles that are wished for, in physical terms; the same for every slide of a run.

    Args:
        tile_px: Side of a tile as the backbone sees it, in pixels.
        mpp: Micrometres per tile pixel, so a tile covers ``tile_px * mpp`` µm.
        overlap_px: Pixels that neighbours share.
        min_tissue: Least fraction of tissue in a tile, 0 to 1.
        edge: Tiles over the slide's right and lower border: ``drop`` them, or ``pad`` them with background.
        allow_upsampling: Accept slides coarser than ``mpp``; their tiles are interpolated.
    """

    tile_px: int = 224
    mpp: float = 0.5
    overlap_px: int = 0
    min_tissue: float = 0.5
    edge: Edge = "drop"
    allow_upsampling: bool = False

    def __post_init__(self) -> None:
        if self.tile_px < 1:
            raise UsageError(f"tile_px is {self.tile_px}", hint="give a side of at least 1 pixel, such as 224")
        if not 0 <= self.overlap_px < self.tile_px:
            raise UsageError(f"overlap_px is {self.overlap_px}", hint=f"give 0 to {self.tile_px - 1}")
        if not self.mpp > 0:
            raise UsageError(f"mpp is {self.mpp}", hint="give micrometres per pixel, such as 0.5")
        if not 0 <= self.min_tissue <= 1:
            raise UsageError(f"min_tissue is {self.min_tissue}", hint="give a fraction from 0 to 1")

    @property
    def tile_um(self) -> float:
        """Side of a tile in µm."""
        return self.tile_px * self.mpp

    @property
    def stride_um(self) -> float:
        """Distance between the corners of neighbouring tiles in µm."""
        return (self.tile_px - self.overlap_px) * self.mpp

    @property
    def folder(self) -> str:
        """Name of the folder that holds everything made with this spec, as TRIDENT writes it."""
        return f"{nominal_magnification(self.mpp):g}x_{self.tile_px}px_{self.overlap_px}px_overlap"


@dataclass(frozen=True, kw_only=True, eq=False)
class TileGrid:
    """The plan for one slide: which tiles, and how to read them. Row-major: y outer, x inner.

    Args:
        spec: The wish that it answers.
        coords_l0: int64 (n, 2): x and y of each tile's top-left corner in level-0 pixels.
        footprint_l0: (width, height) of a tile in level-0 pixels; not rounded.
        read_level: Pyramid level that tiles are read from.
        tissue_fraction: float32 (n,): tissue in each tile, 0 to 1.
    """

    spec: TileSpec
    coords_l0: npt.NDArray[np.int64]
    footprint_l0: tuple[float, float]
    read_level: int
    tissue_fraction: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.coords_l0)


@dataclass(frozen=True, kw_only=True)
class BackboneCard:
    """What a backbone is; it travels with the weights and is never typed by the user.

    Args:
        name: Spec name, such as ``timm/resnet50.a1_in1k`` or ``scattering``.
        dim: Length of a feature vector.
        pooling: How the map or the tokens became one vector: ``avg``, ``cls``, ``cls+mean``, ``none`` …
        input_px: Side of the square input; tiles of another size are resized on the device.
        mean: Per-channel mean of the input scaled to [0, 1].
        std: Per-channel standard deviation of the same.
        interpolation: ``bilinear`` or ``bicubic``, always antialiased.
        weights: Where they are from: ``hub:<id>``, ``file:<name>``, ``random(seed=0)`` or ``none``.
        weights_digest: SHA-256 over names, shapes and bytes of all parameters and buffers, and over those arguments of
            the network that are in no state dict (padding, epsilon, dropped blocks); empty when there are no weights.
        native_mpp: Pixel size that it was trained at, when known.
        licence: Of the weights, as far as its source says.
        gated: Its hub asks for an accepted licence.
        fp32_only: Its numbers are wrong in half precision, so autocast is off for it.
        algorithm: Raised when the same weights would give other features than an older release.
    """

    name: str
    dim: int
    pooling: str
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    weights: str = "none"
    weights_digest: str = ""
    native_mpp: float | None = None
    licence: str = "unknown"
    gated: bool = False
    fp32_only: bool = False
    algorithm: int = 1

    @property
    def slug(self) -> str:
        """Name that is safe in a path, such as ``timm-resnet50.a1_in1k``."""
        return slug_of(self.name)


@dataclass(frozen=True, kw_only=True)
class FeatureIdentity:
    """What must be equal before features may be mixed, resumed or given to a trained head.

    Args:
        backbone: Everything of the card that changes the numbers.
        tiles: The tile spec; ``{"patches": true}`` for patch sets, whose images are used whole.
        stain: The stain normaliser as :func:`histotl.core.registry.identified` says it: canonical spec and version.
        compute: Number format of the forward pass: ``fp32``, ``bf16`` or ``fp16``; with ``+openvino`` or
            ``+onnxruntime`` when that library computed it.
        dtype: Number format on disk.
    """

    backbone: dict[str, object]
    tiles: dict[str, object]
    stain: str
    compute: str
    dtype: str

    @classmethod
    def of(cls, card: BackboneCard, tiles: TileSpec | None, *, stain: str, compute: str, dtype: str) -> FeatureIdentity:
        """Identity of features made by ``card`` on ``tiles`` (None for patch sets)."""
        backbone = dataclasses.asdict(card)
        for key in ("licence", "gated", "native_mpp", "fp32_only"):
            del backbone[key]
        if card.weights_digest:
            # The digest says which weights; where they were found does not change the features.
            del backbone["weights"]
        wish: dict[str, object] = {"patches": True} if tiles is None else dataclasses.asdict(tiles)
        return cls(backbone=json.loads(json.dumps(backbone)), tiles=wish, stain=stain, compute=compute, dtype=dtype)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal text means equal identity."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureIdentity:
        """Inverse of :meth:`to_json`."""
        return cls(**json.loads(text))

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def differences(self, other: FeatureIdentity) -> list[str]:
        """Readable lines ``tiles.mpp: 0.5 != 1.0`` for every entry that differs."""
        mine, theirs = _flatten(self._parts()), _flatten(other._parts())
        keys = sorted(mine.keys() | theirs.keys())
        return [f"{k}: {mine.get(k)!r} != {theirs.get(k)!r}" for k in keys if mine.get(k) != theirs.get(k)]

    def _parts(self) -> dict[str, object]:
        """The entries; the stain's version is one of its own, as a spec is long."""
        stain, version = split_version(self.stain)
        return {**dataclasses.asdict(self), "stain": stain, "stain version": version}


@dataclass(frozen=True, kw_only=True)
class SlideEntry:
    """One row of a slide manifest.

    Args:
        path: The slide's file.
        slide_id: Name of the slide in every output.
        mpp: Pixel size that overrides the slide's own metadata; None to use the metadata.
        mpp_source: Who said so, when ``mpp`` is given: ``manifest`` or ``--mpp-override``.
    """

    path: Path
    slide_id: str
    mpp: float | None = None
    mpp_source: str = field(default="manifest")


def slug_of(name: str) -> str:
    """A name that is safe in a path: letters, digits and ``. _ -`` stay, everything else becomes ``-``."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _flatten(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
