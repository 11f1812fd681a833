"""Reads an embeddings file: ours in full, and TRIDENT's or CLAM's features as far as they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from histotl.core.errors import CorruptFileError, StoreError
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.store import schema
from histotl.store.hdf5 import get_dataset, number_attribute, open_file, text_attribute
from histotl.store.rows import ChunkedRows, RowSelection, Storage, read_block, take
from histotl.store.schema import Key
from histotl.store.seal import has_seal, seal_problem
from histotl.store.values_json import card_from_json, from_json, identity_from_json, provenance_from_json


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """An open embeddings file. Rows are read when they are asked for; no file handle is held until then.

    Args:
        path: The file.
        slide_id: Name of the slide, or of the patch set.
        n: Rows.
        dim: Length of a feature vector.
        dtype: Number format on disk.
        encoder: Name of the backbone, as the file gives it; empty when it does not.
        identity: None in files of other tools, as are the card and the provenance.
        card: The backbone.
        provenance: Who made the file.
        footprint_l0: (width, height) of a tile in level-0 pixels; TRIDENT's nominal figure in a file of its own.
        tile_um: Side of a tile in µm.
        mpp: µm per level-0 pixel of the slide, mean of x and y.
        mpp_source: Where that figure came from.
        source_fingerprint: Digest of what the features were made from.
        digest: SHA-256 of features, coordinates, tissue fractions and items; empty in files of other tools.
        stain_state: What the stain normaliser fitted on this slide.
    """

    path: Path
    slide_id: str
    n: int
    dim: int
    dtype: np.dtype[np.floating]
    encoder: str = ""
    identity: FeatureIdentity | None = None
    card: BackboneCard | None = None
    provenance: Provenance | None = None
    footprint_l0: tuple[float, float] | None = None
    tile_um: float | None = None
    mpp: float | None = None
    mpp_source: str = ""
    source_fingerprint: str = ""
    digest: str = ""
    stain_state: Mapping[str, object] = field(default_factory=dict)
    _storage: Storage = field(repr=False)

    @cached_property
    def features(self) -> npt.NDArray[np.floating] | ChunkedRows:
        """All rows, lazily: a read-only memory map, or slices through HDF5 where the file is chunked."""
        return self._storage.rows(self.path, (self.n, self.dim), self.dtype)

    def read(self, rows: RowSelection | None = None, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[np.floating]:
        """Rows as a new array that the caller may change.

        Args:
            rows: A slice, or int (b,) places in any order; None for all.
            dtype: Number format wanted.

        Returns:
            (b, dim).

        Raises:
            CorruptFileError: The file is cut short or damaged.
            StoreError: A row does not exist.
        """
        offset, shape = self._storage.offset, (self.n, self.dim)
        if rows is None and offset is not None and self.n:
            return read_block(self.path, offset, shape, self.dtype, dtype)
        was_open = "features" in self.__dict__
        try:
            return take(self.features, rows, self.path).astype(dtype, copy=False)
        finally:
            if not was_open:
                self.close()

    @cached_property
    def coords_l0(self) -> npt.NDArray[np.int64] | None:
        """int64 (n, 2): x and y of each tile's top-left corner in level-0 pixels; None for a patch set."""
        values = self._dataset(schema.COORDS)
        return None if values is None else values.reshape(-1, 2).astype(np.int64)

    @cached_property
    def tissue_fraction(self) -> npt.NDArray[np.float32] | None:
        """float32 (n,): tissue in each tile, 0 to 1; None where the file does not say."""
        values = self._dataset(schema.TISSUE)
        return None if values is None else values.astype(np.float32)

    @cached_property
    def items(self) -> tuple[str, ...]:
        """Path of each patch in the order of the rows; empty for a slide."""
        # The library does not check this kind of text and can hang where it is damaged.
        if self.identity is not None and has_seal(self.path) and (broken := seal_problem(self.path)):
            raise CorruptFileError(f"{self.path}: {broken}", hint="delete it and make it again")
        with open_file(self.path) as file:
            dataset = get_dataset(file, schema.ITEMS, text=True)
            return () if dataset is None else tuple(text.decode() for text in dataset[()])

    def close(self) -> None:
        """Let go of the file. Reading again opens it again."""
        rows = self.__dict__.pop("features", None)
        if isinstance(rows, ChunkedRows):
            rows.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.n

    def __reduce__(self) -> tuple[object, ...]:
        return open_embeddings, (self.path,)

    def _dataset(self, name: str) -> npt.NDArray[np.generic] | None:
        with open_file(self.path) as file:
            dataset = get_dataset(file, name)
            return None if dataset is None else np.asarray(dataset[()])


def open_embeddings(path: Path | str) -> Embeddings:
    """Open an embeddings file of ours, or a features file of TRIDENT or CLAM (``identity`` is None then).

    Only what is needed to judge the file is read; `check_file` looks at every byte.

    Raises:
        StoreError: There is no such file, or it was made by a newer histotl.
        CorruptFileError: It is damaged, or no features file of these kinds.
    """
    path = Path(path)
    with open_file(path) as file:
        features = _features(file, path)
        n, dim = (int(side) for side in features.shape[-2:])
        _check_companions(file, path, n)
        coords = file.get(schema.COORDS)
        storage = Storage.of(features)
        if storage.offset is not None and storage.offset + features.dtype.itemsize * n * dim > path.stat().st_size:
            raise CorruptFileError(f"{path} is cut short: its features end beyond its end", hint="make it again")
        fields = _our_fields(file, path) if Key.SCHEMA in file.attrs else _their_fields(features, coords, path)
        return Embeddings(path=path, n=n, dim=dim, dtype=features.dtype, _storage=storage, **fields)


def _features(file: h5py.File, path: Path) -> h5py.Dataset:
    """The features, or an answer to what else the file may be."""
    if schema.FEATURES not in file:
        found = ", ".join(sorted(file)[:6]) or "nothing"
        fact = f"{path} is not a histotl or TRIDENT features file: it has no dataset 'features' but {found}"
        if "feats" in file or "patch_embeddings" in file:
            cure = "features of STAMP are not read; embed the slides with histotl embed, or rename feats to features"
            raise CorruptFileError(f"{fact}; it looks like STAMP", hint=cure)
        if schema.COORDS in file:
            raise CorruptFileError(f"{fact}; it looks like a coordinates file", hint="give the features_… folder")
        raise CorruptFileError(fact, hint="give a file made by histotl embed or by TRIDENT")
    if isinstance(file.get(schema.FEATURES, getlink=True), h5py.HardLink) and isinstance(
        file[schema.FEATURES], h5py.Group
    ):
        inside = ", ".join(sorted(file[schema.FEATURES])[:6])
        fact = f"{path}: 'features' is a group ({inside}), not a dataset; it looks like AtlasPatch"
        raise CorruptFileError(fact, hint="give a file made by histotl embed or by TRIDENT")
    features = get_dataset(file, schema.FEATURES)
    if features is None or features.dtype.kind != "f":
        raise CorruptFileError(f"{path}: 'features' are not floating-point numbers", hint="make the file again")
    if features.ndim == 1:
        cure = "give the features_… folder with one row for each tile"
        raise CorruptFileError(f"{path}: 'features' is one vector; it looks like slide features", hint=cure)
    if features.ndim not in (2, 3) or (features.ndim == 3 and features.shape[0] != 1):
        raise CorruptFileError(f"{path}: 'features' have the shape {features.shape}, (n, d) expected")
    return features


def _check_companions(file: h5py.File, path: Path, n: int) -> None:
    """Refuse a file whose datasets do not have a row for each row of features."""
    for name in (schema.COORDS, schema.TISSUE, schema.ITEMS):
        dataset = get_dataset(file, name, text=name == schema.ITEMS)
        if dataset is None:
            continue
        tail = (2,) if name == schema.COORDS else ()
        shapes = ((n, *tail), (1, n, *tail)) if name == schema.COORDS else ((n,),)
        if dataset.shape not in shapes:
            fact = f"{path}: {name!r} have the shape {dataset.shape}, but there are {n} rows of features"
            raise CorruptFileError(fact, hint="make the file again")
        if name == schema.COORDS and dataset.dtype.kind not in "iu":
            raise CorruptFileError(f"{path}: 'coords' are {dataset.dtype}, whole level-0 pixels expected")


def _our_fields(file: h5py.File, path: Path) -> dict[str, Any]:
    version = number_attribute(file.attrs, Key.SCHEMA)
    if version is None or version > schema.SCHEMA_VERSION:
        fact = f"{path} has the schema version {version}, this histotl reads up to {schema.SCHEMA_VERSION}"
        raise StoreError(fact, hint="pip install --upgrade histotl")
    texts = {key: text_attribute(file.attrs, key) for key in schema.REQUIRED}
    missing = [str(key) for key, text in texts.items() if text is None]
    if missing:
        raise CorruptFileError(f"{path} lacks the attributes {', '.join(missing)}", hint="make the file again")
    text = {key: value for key, value in texts.items() if value is not None}
    mpp, footprint = file.attrs.get(Key.MPP), file.attrs.get(Key.FOOTPRINT)
    card = card_from_json(text[Key.CARD])
    return {
        "slide_id": text[Key.SLIDE_ID],
        "encoder": card.name,
        "identity": identity_from_json(text[Key.IDENTITY]),
        "card": card,
        "provenance": provenance_from_json(text[Key.PROVENANCE]),
        "stain_state": from_json(text[Key.STAIN_STATE], what=Key.STAIN_STATE),
        "source_fingerprint": text[Key.FINGERPRINT],
        "digest": text[Key.DIGEST],
        "footprint_l0": None if footprint is None else (float(footprint[0]), float(footprint[1])),
        "mpp": None if mpp is None else float(np.mean(mpp)),
        "mpp_source": text_attribute(file.attrs, Key.MPP_SOURCE) or "",
        "tile_um": number_attribute(file.attrs, Key.TILE_UM),
    }


def _their_fields(features: h5py.Dataset, coords: h5py.Dataset | None, path: Path) -> dict[str, Any]:
    side = None if coords is None else number_attribute(coords.attrs, "patch_size_level0")
    name = text_attribute(features.attrs, "name") or (text_attribute(coords.attrs, "name") if coords else None)
    return {
        "slide_id": name or path.stem,
        "encoder": text_attribute(features.attrs, "encoder") or "",
        "footprint_l0": None if side is None else (side, side),
    }
