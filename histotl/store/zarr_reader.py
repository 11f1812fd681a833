"""Reads a cohort: one zarr v3 store of many embeddings files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zarr

from histotl.core.errors import CorruptFileError, HistotlError, StoreError
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.store import schema
from histotl.store.extras import EXTRAS, QUALITY, VIEWS, Extra, Quality, QualitySpec, extra_from
from histotl.store.schema import Key
from histotl.store.values_json import card_from_json, from_json, identity_from_json

ITEM_BYTES: Final = "items_utf8"
ITEM_ENDS: Final = "items_ends"
FILES: Final = "histotl_files"


@dataclass(frozen=True, kw_only=True)
class CohortEntry:
    """One file of a cohort.

    Args:
        slide_id: Name of the slide or patch set.
        start: First of its rows.
        n: Number of its rows.
        digest: SHA-256 of its values in the embeddings file.
        source_fingerprint: Digest of what its features were made from.
        footprint_l0: (width, height) of a tile in level-0 pixels.
        tile_um: Side of a tile in µm.
        mpp: µm per level-0 pixel.
        mpp_source: Where that figure came from.
        stain_state: What the stain normaliser fitted.
    """

    slide_id: str
    start: int
    n: int
    digest: str
    source_fingerprint: str
    footprint_l0: tuple[float, float] | None = None
    tile_um: float | None = None
    mpp: float | None = None
    mpp_source: str = ""
    stain_state: Mapping[str, object] = field(default_factory=dict)

    @property
    def rows(self) -> slice:
        """Its rows in the arrays of the cohort."""
        return slice(self.start, self.start + self.n)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """An open cohort. ``features[a:b]`` reads lazily; ``read`` takes the name of a file.

    Args:
        path: The store.
        identity: What all its features are.
        card: The backbone.
        entries: Its files in the order of their rows.
        features: (N, d) zarr array, read when sliced.
        extras: What else every row has: name of the array -> what it is.
    """

    path: str
    identity: FeatureIdentity
    card: BackboneCard
    entries: tuple[CohortEntry, ...]
    features: Any
    extras: Mapping[str, Extra] = field(default_factory=dict)
    _group: Any = field(repr=False)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Names of the files in the order of their rows."""
        return tuple(entry.slide_id for entry in self.entries)

    def entry(self, slide_id: str) -> CohortEntry:
        """Where a file's rows are.

        Raises:
            StoreError: The cohort does not have it.
        """
        try:
            return self._by_name[slide_id]
        except KeyError as error:
            fact = f"{self.path} has no {slide_id!r} among its {len(self.entries)} files"
            raise StoreError(fact, hint="look at Cohort.slide_ids") from error

    def read(
        self,
        slide_id: str,
        rows: slice | None = None,
        dtype: npt.DTypeLike = np.float32,
        *,
        view: int | None = None,
    ) -> npt.NDArray[Any]:
        """Features of one file, or of one of its augmented views, (b, d), as a new array.

        Raises:
            CorruptFileError: A shard is damaged or lost.
            StoreError: There is no such view.
        """
        if view is None:
            values = self._slice(self.features, slide_id, rows)
        else:
            count = self._group[VIEWS].shape[0] if VIEWS in self.extras else 0
            if not 0 <= view < count:
                raise StoreError(f"view {view} does not exist in {self.path}, which has {count}")
            values = self._slice(self._group[VIEWS], slide_id, rows, (view,))
        if np.isnan(values).any():  # NaN is what stands for a shard that is not there
            raise CorruptFileError(f"{self.path}: features of {slide_id!r} are lost", hint="write the cohort again")
        return values.astype(dtype)

    def coords_l0(self, slide_id: str) -> npt.NDArray[np.int64] | None:
        """int64 (n, 2) corners of one file's tiles in level-0 pixels; None for a patch set."""
        return self._optional(schema.COORDS, slide_id)

    def tissue_fraction(self, slide_id: str) -> npt.NDArray[np.float32] | None:
        """float32 (n,) tissue in each tile of one file; None for a patch set."""
        return self._optional(schema.TISSUE, slide_id)

    def quality(self, slide_id: str) -> Quality | None:
        """Measures of the quality of one file's tiles; None where nothing was measured."""
        spec = self.extras.get(QUALITY)
        if not isinstance(spec, QualitySpec):
            return None
        values = self._slice(self._group[QUALITY], slide_id, None)
        if np.isinf(values).any():  # what stands for a shard that is not there
            raise CorruptFileError(f"{self.path}: quality of {slide_id!r} is lost", hint="write the cohort again")
        return Quality(values=values, spec=spec)

    def items(self, slide_id: str) -> tuple[str, ...]:
        """Paths of one patch set's rows; empty for a slide."""
        if ITEM_ENDS not in self._group:
            return ()
        rows = self.entry(slide_id).rows
        ends = self._slice(self._group[ITEM_ENDS], slide_id, None)
        if not ends.size:
            return ()
        with _zarr_errors(self.path):
            first = int(self._group[ITEM_ENDS][rows.start - 1]) if rows.start else 0
            text = self._group[ITEM_BYTES][first : int(ends[-1])].tobytes()
        edges = [0, *(ends - first).tolist()]
        return tuple(text[a:b].decode() for a, b in pairwise(edges))

    def _optional(self, name: str, slide_id: str) -> npt.NDArray[Any] | None:
        if name not in self._group:
            return None
        values = self._slice(self._group[name], slide_id, None)
        if (values < 0).any():  # -1 stands for a shard that is not there
            raise CorruptFileError(f"{self.path}: {name} of {slide_id!r} are lost", hint="write the cohort again")
        return values

    def _slice(self, array: Any, slide_id: str, rows: slice | None, plane: tuple[int, ...] = ()) -> npt.NDArray[Any]:
        entry = self.entry(slide_id)
        start, stop, step = (rows or slice(None)).indices(entry.n)
        if step < 1:
            raise StoreError(f"rows {rows} of {slide_id!r} go backwards", hint="slice forwards and turn the result")
        with _zarr_errors(self.path):
            return np.asarray(array[(*plane, slice(entry.start + start, entry.start + max(start, stop), step))])

    @cached_property
    def _by_name(self) -> dict[str, CohortEntry]:
        return {entry.slide_id: entry for entry in self.entries}


def open_cohort(path: Path | str) -> Cohort:
    """Open a cohort; nothing but its table is read.

    Raises:
        StoreError: There is no such store, or it was made by a newer histotl.
        CorruptFileError: It is not a cohort.
    """
    cure = "give a store made by write_cohort"
    try:
        # Version 3 only: stores of version 2 may hold pickled objects.
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
    except FileNotFoundError as error:
        raise StoreError(f"there is no zarr v3 store at {path}", hint=cure) from error
    with _zarr_errors(str(path)):
        attributes = dict(group.attrs)
        if attributes.get(Key.KIND) != "cohort" or schema.FEATURES not in group:
            raise CorruptFileError(f"{path} is a zarr store but not a cohort", hint=cure)
        version = attributes.get(Key.SCHEMA)
        if not isinstance(version, int) or version > schema.SCHEMA_VERSION:
            fact = f"{path} has the schema version {version}, this histotl reads up to {schema.SCHEMA_VERSION}"
            raise StoreError(fact, hint="pip install --upgrade histotl")
        table: Any = from_json(str(attributes[FILES]), what=FILES)["files"]
        return Cohort(
            path=str(path),
            identity=identity_from_json(str(attributes[Key.IDENTITY])),
            card=card_from_json(str(attributes[Key.CARD])),
            entries=tuple(CohortEntry(**row | {"footprint_l0": _pair(row["footprint_l0"])}) for row in table),
            features=group[schema.FEATURES],
            extras={name: extra_from(name, dict(group[name].attrs)) for name in EXTRAS if name in group},
            _group=group,
        )


def _pair(value: Sequence[float] | None) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))


@contextmanager
def _zarr_errors(path: str) -> Iterator[None]:
    """Turn what zarr raises on a damaged store into one error."""
    try:
        yield
    except HistotlError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}", hint="write the cohort again") from error
