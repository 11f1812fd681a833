"""The coordinates file of a slide: its tiles before any backbone has seen them, as TRIDENT writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from histotl.core.atomic import atomic_path
from histotl.core.errors import CorruptFileError
from histotl.core.provenance import Provenance
from histotl.core.values import SlideInfo, TileGrid
from histotl.store import schema
from histotl.store.attributes import (
    number_attribute,
    numbers_attribute,
    set_attributes,
    set_own_attributes,
    text_attribute,
)
from histotl.store.hdf5 import create_file, get_dataset, open_file, write_contiguous
from histotl.store.schema import Key
from histotl.store.values_json import from_json


@dataclass(frozen=True, kw_only=True, eq=False)
class CoordsFile:
    """What a coordinates file says. None and empty: it does not.

    Args:
        coords_l0: int64 (n, 2): x and y of each tile's top-left corner in level-0 pixels.
        slide_id: Name of the slide.
        footprint_l0: (width, height) of a tile in level-0 pixels: exact in a file of ours, nominal in TRIDENT's,
            ``patch_size * downsample`` in CLAM's.
        patch_size: Side of a tile in pixels as a backbone sees it.
        overlap: Pixels that neighbours share, of the same kind.
        level0_magnification: Nominal magnification of the slide.
        target_magnification: Nominal magnification of the tiles.
        level0_width: Of the slide, pixels.
        level0_height: The same.
        tissue_fraction: float32 (n,): tissue in each tile, 0 to 1.
        mpp: µm per level-0 pixel of the slide.
        tiles: The tile spec as a dict.
        source_fingerprint: Digest of what the tiles were made from.
        tissue_mm2: Area of the tissue mask.
        flags: What is odd about the mask, by name; see :mod:`histotl.embed.flags`.
    """

    coords_l0: npt.NDArray[np.int64]
    slide_id: str
    footprint_l0: tuple[float, float] | None = None
    patch_size: int | None = None
    overlap: int | None = None
    level0_magnification: int | None = None
    target_magnification: float | None = None
    level0_width: int | None = None
    level0_height: int | None = None
    tissue_fraction: npt.NDArray[np.float32] | None = None
    mpp: float | None = None
    tiles: Mapping[str, object] = field(default_factory=dict)
    source_fingerprint: str = ""
    tissue_mm2: float | None = None
    flags: tuple[str, ...] = ()


def write_coords(
    path: Path,
    info: SlideInfo,
    grid: TileGrid,
    provenance: Provenance,
    *,
    source_fingerprint: str = "",
    tissue_mm2: float | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Write a slide's tiles, atomically.

    Args:
        path: The file.
        info: The slide.
        grid: Its tiles.
        provenance: Who made the file.
        source_fingerprint: Digest of what the tiles were made from; the slide's own when empty.
        tissue_mm2: Area of the tissue mask; None when there is none.
        flags: What is odd about the mask, by name.

    Raises:
        StoreError: The folder cannot be written to.
    """
    with atomic_path(path) as temporary, create_file(temporary) as file:
        coords = write_contiguous(file, schema.COORDS, grid.coords_l0.astype(np.int64).reshape(-1, 2))
        set_attributes(coords.id, schema.coords_attributes(info, grid, path))
        write_contiguous(file, schema.TISSUE, grid.tissue_fraction.astype(np.float32))
        set_own_attributes(file.id, schema.grid_attributes(info, grid))
        set_own_attributes(
            file.id,
            {
                Key.SCHEMA: schema.WITHOUT_EXTRAS,
                Key.KIND: "coords",
                Key.SLIDE_ID: info.slide_id,
                Key.PROVENANCE: provenance.to_json(),
                Key.FINGERPRINT: source_fingerprint or info.fingerprint,
                Key.FLAGS: ",".join(flags),
                **({} if tissue_mm2 is None else {Key.TISSUE_MM2: float(tissue_mm2)}),
            },
        )


def read_coords(path: Path) -> CoordsFile:
    """Read a coordinates file of ours, of TRIDENT or of CLAM.

    Raises:
        StoreError: There is no such file.
        CorruptFileError: It is damaged, or no coordinates file.
    """
    with open_file(path) as file:
        coords = get_dataset(file, schema.COORDS)
        if coords is None or coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iu":
            seen = "missing" if coords is None else f"{coords.dtype} {coords.shape}"
            raise CorruptFileError(f"{path}: 'coords' are {seen}, whole numbers (n, 2) expected")
        tissue = get_dataset(file, schema.TISSUE)
        if tissue is not None and tissue.shape != coords.shape[:1]:
            raise CorruptFileError(f"{path}: {tissue.shape} tissue fractions for {coords.shape[0]} tiles")
        tiles, mpp = text_attribute(file.id, Key.TILES), numbers_attribute(file.id, Key.MPP)
        attributes = coords.id
        return CoordsFile(
            coords_l0=coords[()].astype(np.int64),
            slide_id=text_attribute(attributes, "name") or path.stem.removesuffix("_patches"),
            footprint_l0=_footprint(file, attributes),
            patch_size=_whole(attributes, "patch_size"),
            overlap=_whole(attributes, "overlap"),
            level0_magnification=_whole(attributes, "level0_magnification"),
            target_magnification=number_attribute(attributes, "target_magnification"),
            level0_width=_whole(attributes, "level0_width"),
            level0_height=_whole(attributes, "level0_height"),
            tissue_fraction=None if tissue is None else tissue[()].astype(np.float32),
            mpp=None if mpp is None else float(np.mean(mpp)),
            tiles={} if tiles is None else from_json(tiles, what=Key.TILES),
            source_fingerprint=text_attribute(file.id, Key.FINGERPRINT) or "",
            tissue_mm2=number_attribute(file.id, Key.TISSUE_MM2),
            flags=tuple(filter(None, (text_attribute(file.id, Key.FLAGS) or "").split(","))),
        )


def _footprint(file: h5py.File, attributes: h5py.h5d.DatasetID) -> tuple[float, float] | None:
    exact = numbers_attribute(file.id, Key.FOOTPRINT)
    if exact is not None:
        return float(exact[0]), float(exact[1])
    side = number_attribute(attributes, "patch_size_level0")
    if side is not None:
        return side, side
    side, downsample = number_attribute(attributes, "patch_size"), numbers_attribute(attributes, "downsample")
    if side is None or downsample is None:
        return None
    factor = np.broadcast_to(downsample, (2,)) * side
    factor = factor * (number_attribute(attributes, "custom_downsample") or 1.0)  # Fishing-Rod's own
    return float(factor[0]), float(factor[1])


def _whole(attributes: h5py.h5d.DatasetID, name: str) -> int | None:
    value = number_attribute(attributes, name)
    return None if value is None else int(value)
