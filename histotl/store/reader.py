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
from histotl.store.attributes import number_attribute, numbers_attribute, text_attribute
from histotl.store.convert import converted
from histotl.store.extras import QUALITY, VIEWS, Extra, Quality, QualitySpec, ViewSpec, find_extras
from histotl.store.hdf5 import find_dataset, get_dataset, open_file, open_root
from histotl.store.rows import ChunkedRows, RowSelection, Storage, mapped, read_block, take
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
        digest: SHA-256 of features, coordinates, tissue fractions, items and extras; empty in files of other tools.
        stain_state: What the stain normaliser fitted on this slide.
        extras: What else every row has: name of the dataset -> what it is.
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
    extras: Mapping[str, Extra] = field(default_factory=dict)
    _storage: Storage = field(repr=False)
    _offsets: Mapping[str, int] = field(default_factory=dict, repr=False)

    @cached_property
    def features(self) -> npt.NDArray[np.floating] | ChunkedRows:
        """All rows, lazily: a read-only memory map, or slices through HDF5 where the file is chunked."""
        return self._storage.rows(self.path, (self.n, self.dim), self.dtype)

    @property
    def view_spec(self) -> ViewSpec | None:
        """What the augmented views of the tiles are; None where there are none."""
        found = self.extras.get(VIEWS)
        return found if isinstance(found, ViewSpec) else None

    @cached_property
    def views(self) -> npt.NDArray[np.floating] | None:
        """All augmented views (k, n, dim), lazily: a read-only memory map; None where there are none."""
        spec = self.view_spec
        return (
            None if spec is None else mapped(self.path, self._offsets[VIEWS], spec.shape(self.n, self.dim), self.dtype)
        )

    @cached_property
    def quality(self) -> Quality | None:
        """Measures of the quality of every tile; None where nothing was measured."""
        values, spec = self._dataset(QUALITY) if QUALITY in self.extras else None, self.extras.get(QUALITY)
        if values is None or not isinstance(spec, QualitySpec):
            return None
        return Quality(values=values.astype(np.float32), spec=spec)

    def read(
        self, rows: RowSelection | None = None, dtype: npt.DTypeLike = np.float32, *, view: int | None = None
    ) -> npt.NDArray[np.floating]:
        """Rows as a new array that the caller may change.

        Args:
            rows: A slice, or int (b,) places in any order; None for all.
            dtype: Number format wanted.
            view: Number of an augmented view, whose features are wanted instead of the plain ones.

        Returns:
            (b, dim).

        Raises:
            CorruptFileError: The file is cut short or damaged.
            StoreError: A row or the view does not exist.
        """
        offset, shape = self._offset(view), (self.n, self.dim)
        if rows is None and offset is not None and self.n:
            return read_block(self.path, offset, shape, self.dtype, dtype)
        name = "features" if view is None else "views"
        was_open = name in self.__dict__
        try:
            source = self.features if view is None or self.views is None else self.views[view]
            return converted(take(source, rows, self.path), dtype)
        finally:
            if not was_open:
                self._forget(name)

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
        self._forget("features")
        self._forget("views")

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

    def _offset(self, view: int | None) -> int | None:
        """Where the rows of the features, or of a view, begin; None where HDF5 has to find them."""
        if view is None:
            return self._storage.offset
        count = 0 if self.view_spec is None else self.view_spec.count
        if not 0 <= view < count:
            cure = "run histotl embed with --views and --augment" if not count else f"give 0 to {count - 1}"
            raise StoreError(f"view {view} does not exist in {self.path.name}, which has {count}", hint=cure)
        return self._offsets[VIEWS] + view * self.n * self.dim * self.dtype.itemsize

    def _forget(self, name: str) -> None:
        rows = self.__dict__.pop(name, None)
        if isinstance(rows, ChunkedRows):
            rows.close()

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
    with open_root(path) as root:
        features = _features(root, path)
        n, dim = features.shape[-2:]
        coords = _check_companions(root, path, n)
        storage = Storage.of(features)
        if storage.offset is not None and storage.offset + features.dtype.itemsize * n * dim > path.stat().st_size:
            raise CorruptFileError(f"{path} is cut short: its features end beyond its end", hint="make it again")
        is_ours = h5py.h5a.exists(root, Key.SCHEMA.encode())
        fields = _our_fields(root, path) if is_ours else _their_fields(features, coords, path)
        if is_ours:
            fields["extras"], fields["_offsets"] = find_extras(root, path, (n, dim), features.dtype)
        return Embeddings(path=path, n=n, dim=dim, dtype=features.dtype, _storage=storage, **fields)


def _features(root: h5py.h5g.GroupID, path: Path) -> h5py.h5d.DatasetID:
    """The features, or an answer to what else the file may be."""
    try:
        features = find_dataset(root, schema.FEATURES)
    except CorruptFileError as error:
        raise _group_of_features(root, path) or error from None
    if features is None:
        raise _unknown(_names(root), path)
    if features.dtype.kind != "f":
        raise CorruptFileError(f"{path}: 'features' are not floating-point numbers", hint="make the file again")
    shape = features.shape
    if len(shape) == 1:
        cure = "give the features_… folder with one row for each tile"
        raise CorruptFileError(f"{path}: 'features' is one vector; it looks like slide features", hint=cure)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise CorruptFileError(f"{path}: 'features' have the shape {shape}, (n, d) expected")
    return features


def _group_of_features(root: h5py.h5g.GroupID, path: Path) -> CorruptFileError | None:
    """What a file is whose features are not one dataset but several."""
    name = schema.FEATURES.encode()
    if root.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        return None
    found = h5py.h5o.open(root, name)
    if not isinstance(found, h5py.h5g.GroupID):
        return None
    inside = ", ".join(_names(found)[:6])
    fact = f"{path}: 'features' is a group ({inside}), not a dataset; it looks like AtlasPatch"
    return CorruptFileError(fact, hint="give a file made by histotl embed or by TRIDENT")


def _unknown(names: list[str], path: Path) -> CorruptFileError:
    """What a file without features looks like."""
    found = ", ".join(names[:6]) or "nothing"
    fact = f"{path} is not a histotl or TRIDENT features file: it has no dataset 'features' but {found}"
    if "feats" in names or "patch_embeddings" in names:
        cure = "features of STAMP are not read; embed the slides with histotl embed, or rename feats to features"
        return CorruptFileError(f"{fact}; it looks like STAMP", hint=cure)
    if schema.COORDS in names:
        return CorruptFileError(f"{fact}; it looks like a coordinates file", hint="give the features_… folder")
    return CorruptFileError(fact, hint="give a file made by histotl embed or by TRIDENT")


def _names(group: h5py.h5g.GroupID) -> list[str]:
    return sorted(name.decode("utf-8", errors="replace") for name in group)


def _check_companions(root: h5py.h5g.GroupID, path: Path, n: int) -> h5py.h5d.DatasetID | None:
    """Refuse a file whose datasets do not have a row for each row of features; gives the coordinates."""
    coords = None
    for name in (schema.COORDS, schema.TISSUE, schema.ITEMS):
        dataset = find_dataset(root, name, text=name == schema.ITEMS)
        if dataset is None:
            continue
        shape = dataset.shape
        if shape not in (((n, 2), (1, n, 2)) if name == schema.COORDS else ((n,),)):
            fact = f"{path}: {name!r} have the shape {shape}, but there are {n} rows of features"
            raise CorruptFileError(fact, hint="make the file again")
        if name == schema.COORDS:
            coords = dataset
            if coords.dtype.kind not in "iu":
                raise CorruptFileError(f"{path}: 'coords' are {coords.dtype}, whole level-0 pixels expected")
    return coords


def _our_fields(root: h5py.h5g.GroupID, path: Path) -> dict[str, Any]:
    version = number_attribute(root, Key.SCHEMA)
    if version is None or version > schema.SCHEMA_VERSION:
        fact = f"{path} has the schema version {version}, this histotl reads up to {schema.SCHEMA_VERSION}"
        raise StoreError(fact, hint="pip install --upgrade histotl")
    texts = {key: text_attribute(root, key) for key in schema.REQUIRED}
    missing = [str(key) for key, text in texts.items() if text is None]
    if missing:
        raise CorruptFileError(f"{path} lacks the attributes {', '.join(missing)}", hint="make the file again")
    text = {key: value for key, value in texts.items() if value is not None}
    mpp, footprint = numbers_attribute(root, Key.MPP), numbers_attribute(root, Key.FOOTPRINT)
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
        "mpp_source": text_attribute(root, Key.MPP_SOURCE) or "",
        "tile_um": number_attribute(root, Key.TILE_UM),
    }


def _their_fields(features: h5py.h5d.DatasetID, coords: h5py.h5d.DatasetID | None, path: Path) -> dict[str, Any]:
    side = None if coords is None else number_attribute(coords, "patch_size_level0")
    name = text_attribute(features, "name") or (None if coords is None else text_attribute(coords, "name"))
    return {
        "slide_id": name or path.stem,
        "encoder": text_attribute(features, "encoder") or "",
        "footprint_l0": None if side is None else (side, side),
    }
