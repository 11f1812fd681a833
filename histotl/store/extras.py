"""Further values of every tile that a file may hold beside its features: augmented views, and measures of quality.

Each kind is one dataset whose last two axes are (n, width), so that one way of writing, hashing and checking does for
all: ``views`` (k, n, d), features of augmented copies of the tiles; ``quality`` (n, m), NaN where nothing could be
measured. What the numbers mean stands in the attributes of the dataset. The identity of the features does not change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from histotl.core.errors import CorruptFileError, StoreError
from histotl.store.attributes import AttributeValue, number_attribute, text_attribute
from histotl.store.hdf5 import find_dataset

VIEWS = "views"
QUALITY = "quality"
EXTRAS = (VIEWS, QUALITY)
"""All such datasets, in the order in which they are digested."""


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """What the augmented views in a file are. Views that are learnt from together agree in all of it.

    Args:
        augment: Canonical spec of the augmentation, with the version of each link where it is not the first.
        count: Views of each tile, 1 or more.
        seed: The number from which, with slide, tile and view, every random choice follows.
    """

    name: ClassVar[str] = VIEWS

    augment: str
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.augment or self.count < 1 or not 0 <= self.seed < 2**53:
            fact = f"{self.count} views of {self.augment!r} with the seed {self.seed} cannot be stored"
            raise StoreError(fact, hint="give an augmentation, 1 view or more, and a seed from 0 to 2**53")

    def shape(self, n: int, dim: int) -> tuple[int, int, int]:
        """Of the dataset, for n tiles and features of a width."""
        return self.count, n, dim

    def dtype(self, features: np.dtype[np.floating]) -> np.dtype[np.floating]:
        """Of the dataset: that of the features."""
        return features

    def attributes(self) -> dict[str, AttributeValue]:
        """What stands at the dataset."""
        return {"augment": self.augment, "count": self.count, "seed": self.seed}

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Inverse of :meth:`attributes`."""
        return cls(augment=_text(values["augment"]), count=_whole(values["count"]), seed=_whole(values["seed"]))


@dataclass(frozen=True, kw_only=True)
class QualitySpec:
    """What the measures of quality in a file are.

    Args:
        columns: Name of each number of a tile.
        measures: Canonical specs of what measured them, with their versions where they are not the first.
    """

    name: ClassVar[str] = QUALITY

    columns: tuple[str, ...]
    measures: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.columns or not all(self.columns) or len(set(self.columns)) < len(self.columns):
            raise StoreError(f"columns of quality are {self.columns}", hint="give one name or more, each once")

    def shape(self, n: int, dim: int) -> tuple[int, int]:  # noqa: ARG002 # the same question to all kinds
        """Of the dataset, for n tiles and features of a width."""
        return n, len(self.columns)

    def dtype(self, features: np.dtype[np.floating]) -> np.dtype[np.floating]:  # noqa: ARG002 # likewise
        """Of the dataset: always float32."""
        return np.dtype(np.float32)

    def attributes(self) -> dict[str, AttributeValue]:
        """What stands at the dataset: two lists in JSON."""
        return {"columns": json.dumps(self.columns), "measures": json.dumps(self.measures)}

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Inverse of :meth:`attributes`."""
        return cls(columns=_texts(values["columns"]), measures=_texts(values["measures"]))


Extra: TypeAlias = ViewSpec | QualitySpec
"""What some further values are, and so how large they are."""

_KINDS: dict[str, type[ViewSpec] | type[QualitySpec]] = {VIEWS: ViewSpec, QUALITY: QualitySpec}


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """Measures of the quality of every tile.

    Args:
        values: float32 (n, m); NaN where a measure says nothing about a tile.
        spec: What the columns are.
    """

    values: npt.NDArray[np.float32]
    spec: QualitySpec

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """float32 (n,): one measure of all tiles.

        Raises:
            StoreError: The file does not have it.
        """
        if name not in self.spec.columns:
            raise StoreError(f"{name!r} was not measured", hint=f"there is: {', '.join(self.spec.columns)}")
        return self.values[:, self.spec.columns.index(name)]


def find_extras(
    root: h5py.h5g.GroupID, path: Path, shape: tuple[int, int], dtype: np.dtype[np.floating]
) -> tuple[dict[str, Extra], dict[str, int]]:
    """What else every row of a file has, and the bytes at which it begins.

    Args:
        root: The file.
        path: For messages.
        shape: (n, d) of the features.
        dtype: Of the features.

    Raises:
        CorruptFileError: A dataset is not what its attributes say.
    """
    extras: dict[str, Extra] = {}
    offsets: dict[str, int] = {}
    for name in EXTRAS:
        dataset = find_dataset(root, name)
        if dataset is None:
            continue
        try:
            extra = _extra_of(name, dataset)
        except ValueError as error:
            raise CorruptFileError(f"{path}: {error}", hint="make the file again") from error
        wanted, kind, offset = extra.shape(*shape), extra.dtype(dtype), dataset.get_offset()
        size = int(np.prod(wanted, dtype=np.int64)) * kind.itemsize
        if (dataset.shape, dataset.dtype) != (wanted, kind) or (offset is None and size):
            fact = f"{path}: {name!r} are {dataset.dtype} {dataset.shape}, one block of {kind} {wanted} expected"
            raise CorruptFileError(fact, hint="make the file again")
        extras[name], offsets[name] = extra, offset or 0
        if offsets[name] + size > path.stat().st_size:
            raise CorruptFileError(f"{path} is cut short: its {name} end beyond its end", hint="make it again")
    return extras, offsets


def extra_from(name: str, values: Mapping[str, object]) -> Extra:
    """An extra from its attributes.

    Raises:
        ValueError: One is missing, or of another kind.
    """
    try:
        return _KINDS[name].of(values)
    except (KeyError, TypeError, StoreError) as error:
        raise ValueError(f"the attributes of {name!r} are not those of {name}: {error}") from error


def differences(wanted: Mapping[str, Extra], found: Mapping[str, Extra]) -> list[str]:
    """One line for each of the extras wanted that a file does not have as they are wanted."""
    return [f"{name}: {spec} != {found.get(name)}" for name, spec in wanted.items() if found.get(name) != spec]


def _extra_of(name: str, dataset: h5py.h5d.DatasetID) -> Extra:
    """What a dataset says about itself."""
    if name == VIEWS:
        read = {"augment": text_attribute, "count": number_attribute, "seed": number_attribute}
    else:
        read = {"columns": text_attribute, "measures": text_attribute}
    return extra_from(name, {key: get(dataset, key) for key, get in read.items()})


def _whole(value: object) -> int:
    if not isinstance(value, int | float) or value != int(value):
        raise TypeError(f"{value!r} is no whole number")
    return int(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    tree = json.loads(_text(value))
    if not isinstance(tree, list) or not all(isinstance(text, str) for text in tree):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(tree)
