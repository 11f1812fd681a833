"""What stands in an embeddings file: names, attributes, and the values that go with the numbers.

The root holds ``features`` (n, d) and ``coords`` (n, 2) with the attributes that TRIDENT writes, so that its readers
take the file as their own. Ours stand beside them: attributes of the root that begin with ``histotl_``, and the
datasets ``tissue_fraction`` and, for patch sets, ``items`` in the place of ``coords``; and the extras, where there are
some: ``views`` and ``quality``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import numpy as np

from histotl.core.errors import StoreError
from histotl.core.provenance import Provenance
from histotl.core.units import nominal_magnification, round_px
from histotl.core.values import BackboneCard, FeatureIdentity, SlideInfo, TileGrid
from histotl.store.attributes import AttributeValue
from histotl.store.extras import EXTRAS, Extra
from histotl.store.values_json import to_json

SCHEMA_VERSION: Final = 2
"""The newest that is read. Files carry the lowest that they can: 2 came with the extras."""

WITHOUT_EXTRAS: Final = 1

FEATURES: Final = "features"
COORDS: Final = "coords"
TISSUE: Final = "tissue_fraction"
ITEMS: Final = "items"
DATASETS: Final = (FEATURES, COORDS, TISSUE, ITEMS, *EXTRAS)
"""All datasets of an embeddings file, in the order in which they are digested."""

DType = Literal["fp16", "fp32"]
DTYPES: Final[Mapping[DType, np.dtype[np.floating]]] = {
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}


class Key(StrEnum):
    """Our root attributes. JSON is one line of text; the others are single numbers or texts."""

    SCHEMA = "histotl_schema"
    KIND = "histotl_kind"
    SLIDE_ID = "histotl_slide_id"
    IDENTITY = "histotl_identity"
    CARD = "histotl_card"
    PROVENANCE = "histotl_provenance"
    SLIDE = "histotl_slide"
    STAIN_STATE = "histotl_stain_state"
    FINGERPRINT = "histotl_source_fingerprint"
    FOOTPRINT = "histotl_patch_size_level0_exact"
    TILE_UM = "histotl_tile_um"
    MPP = "histotl_mpp"
    MPP_SOURCE = "histotl_mpp_source"
    READ_LEVEL = "histotl_read_level"
    TILES = "histotl_tiles"
    TISSUE_MM2 = "histotl_tissue_mm2"
    FLAGS = "histotl_flags"
    DIGEST = "histotl_digest"


REQUIRED: Final = (
    *(Key.KIND, Key.SLIDE_ID, Key.IDENTITY, Key.CARD, Key.PROVENANCE, Key.STAIN_STATE, Key.FINGERPRINT),
    Key.DIGEST,
)
"""Root attributes that every embeddings file of ours has; slides have more."""

TRIDENT_COORDS: Final[Mapping[str, type]] = {
    "patch_size": int,
    "patch_size_level0": int,
    "level0_magnification": int,
    "target_magnification": float,
    "overlap": int,
    "name": str,
    "savetodir": str,
    "level0_width": int,
    "level0_height": int,
}
"""TRIDENT's attributes of ``coords``, and what we write: int64, float64 or variable-length text."""

TRIDENT_FEATURES: Final = ("name", "savetodir", "encoder")
"""TRIDENT's attributes of ``features``, all text."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingsMeta:
    """Everything of an embeddings file that is not a row.

    Args:
        identity: What must be equal before features may be mixed.
        card: The backbone.
        provenance: Who made the file.
        slide: The slide; None for a patch set.
        grid: Its tiles, in the order of the rows; None for a patch set.
        items: Path of each patch in the order of the rows; empty for a slide.
        stain_state: What the stain normaliser fitted on this slide, as JSON-able values.
        source_fingerprint: Digest of what the features were made from; the slide's own when empty.
        extras: What else every row has, each kind once.
    """

    identity: FeatureIdentity
    card: BackboneCard
    provenance: Provenance
    slide: SlideInfo | None = None
    grid: TileGrid | None = None
    items: tuple[str, ...] = ()
    stain_state: Mapping[str, object] = field(default_factory=dict)
    source_fingerprint: str = ""
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        # The order of the digest, whatever the order given.
        object.__setattr__(self, "extras", tuple(sorted(self.extras, key=lambda extra: EXTRAS.index(extra.name))))
        if len({extra.name for extra in self.extras}) < len(self.extras):
            raise StoreError(f"extras are {self.extras}", hint="give one of each kind")
        if (self.slide is None) != (self.grid is None):
            raise StoreError("an embeddings file of a slide needs both the slide and its grid, one is missing")
        if self.grid is not None and self.items:
            raise StoreError(f"an embeddings file has a grid or items, not both ({len(self.items)} items given)")

    @property
    def n(self) -> int:
        """Rows that the file must have."""
        return len(self.items) if self.grid is None else len(self.grid)

    @property
    def fingerprint(self) -> str:
        """Digest of the source."""
        return self.source_fingerprint or ("" if self.slide is None else self.slide.fingerprint)


def version(extras: Sequence[Extra]) -> int:
    """Schema version of a file: the lowest that has what is in it, so that older readers take what they can."""
    return SCHEMA_VERSION if extras else WITHOUT_EXTRAS


def level0_magnification(mpp: float) -> int:
    """Nominal magnification of a slide by TRIDENT's thresholds; rounded 10 / mpp where it has none."""
    for limit, magnification in ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5)):
        if mpp < limit:
            return magnification
    return max(1, round_px(nominal_magnification(mpp)))


def patch_size_level0(info: SlideInfo, grid: TileGrid) -> int:
    """Side of a tile in level-0 pixels as TRIDENT counts it: equal for all slides of a nominal magnification.

    Readers compare it between the slides of a patient, so it must not follow every small difference of mpp. Where the
    nominal figure is off by more than a fifth (mpp 0.31 is "20x"), boxes drawn with it would be wrong, and the
    rounded true side is written. The true side is always in ``histotl_patch_size_level0_exact``.
    """
    exact = sum(grid.footprint_l0) / 2
    target = nominal_magnification(grid.spec.mpp)
    # 1e-6: a whole quotient must not lose one to the last bit of 10 / mpp.
    nominal = math.floor(grid.spec.tile_px * level0_magnification(info.mpp) / target + 1e-6)
    return nominal if abs(nominal / exact - 1) <= 0.2 else max(1, round_px(exact))


def folder_name(path: Path) -> str:
    """TRIDENT's ``savetodir``: the folder as it was given; of an absolute path only the last part."""
    return path.parent.name if path.parent.is_absolute() else path.parent.as_posix()


def coords_attributes(info: SlideInfo, grid: TileGrid, path: Path) -> dict[str, AttributeValue]:
    """TRIDENT's attributes of ``coords``."""
    return {
        "patch_size": grid.spec.tile_px,
        "patch_size_level0": patch_size_level0(info, grid),
        "level0_magnification": level0_magnification(info.mpp),
        "target_magnification": float(nominal_magnification(grid.spec.mpp)),
        "overlap": grid.spec.overlap_px,
        "name": info.slide_id,
        "savetodir": folder_name(path),
        "level0_width": info.width,
        "level0_height": info.height,
    }


def grid_attributes(info: SlideInfo, grid: TileGrid) -> dict[str, AttributeValue]:
    """Our attributes of the root that say exactly what a tile is."""
    shown = vars(info) | {"path": info.path.name}  # no path of this machine
    return {
        Key.SLIDE: to_json(shown),
        Key.FOOTPRINT: np.array(grid.footprint_l0, dtype=np.float64),
        Key.TILE_UM: float(grid.spec.tile_um),
        Key.MPP: np.array((info.mpp_x, info.mpp_y), dtype=np.float64),
        Key.MPP_SOURCE: info.mpp_source,
        Key.READ_LEVEL: grid.read_level,
        Key.TILES: to_json(grid.spec),
    }


def root_attributes(meta: EmbeddingsMeta, path: Path) -> dict[str, AttributeValue]:
    """Our attributes of the root, without the digest, which is known last."""
    values: dict[str, AttributeValue] = {
        Key.SCHEMA: version(meta.extras),
        Key.KIND: "patches" if meta.slide is None else "slide",
        Key.SLIDE_ID: path.stem if meta.slide is None else meta.slide.slide_id,
        Key.IDENTITY: meta.identity.to_json(),
        Key.CARD: to_json(meta.card),
        Key.PROVENANCE: meta.provenance.to_json(),
        Key.STAIN_STATE: to_json(dict(meta.stain_state)),
        Key.FINGERPRINT: meta.fingerprint,
    }
    if meta.slide is not None and meta.grid is not None:
        values |= grid_attributes(meta.slide, meta.grid)
    return values
