"""Numbers for each tile of a slide, made by a trained model: attention, OOD score and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histotl.core.atomic import atomic_path
from histotl.core.errors import CorruptFileError, StoreError
from histotl.store.attributes import AttributeValue, set_own_attributes, text_attribute
from histotl.store.hdf5 import create_file, get_dataset, open_file, write_contiguous
from histotl.store.schema import COORDS
from histotl.store.values_json import from_json, to_json

_SCORES = "scores"
_ATTRIBUTES = "histotl_attributes"


@dataclass(frozen=True, kw_only=True, eq=False)
class TileScores:
    """Scores of one slide's tiles.

    Args:
        coords_l0: int64 (n, 2): x and y of each tile's top-left corner in level-0 pixels.
        columns: float32 (n,) for each name.
        attributes: What was written with them.
    """

    coords_l0: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[np.float32]]
    attributes: Mapping[str, object] = field(default_factory=dict)


def write_tile_scores(
    path: Path,
    coords_l0: npt.NDArray[np.integer],
    columns: Mapping[str, npt.NDArray[np.floating]],
    attributes: Mapping[str, object],
) -> None:
    """Write the scores of one slide, atomically.

    Args:
        path: The file, by rule ``tile_scores/<slide_id>.h5``.
        coords_l0: (n, 2): corners in level-0 pixels.
        columns: (n,) for each name; stored as float32, NaN where a tile has none.
        attributes: JSON-able values: footprint, slide id, the model's digest.

    Raises:
        StoreError: Columns and coordinates differ in length, a name is not usable, or the folder cannot be written to.
    """
    coords = np.asarray(coords_l0, dtype=np.int64)
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise StoreError(f"coords_l0 of {path.name} have the shape {coords.shape}, (n, 2) wanted")
    for name, values in columns.items():
        if values.shape != coords.shape[:1]:
            raise StoreError(f"column {name!r} of {path.name} has the shape {values.shape}, ({len(coords)},) wanted")
        if not name or "/" in name or name == ".":
            raise StoreError(f"{name!r} cannot name a column of {path.name}", hint="use letters, digits and '_'")
    text: dict[str, AttributeValue] = {_ATTRIBUTES: to_json(dict(attributes))}
    with atomic_path(path) as temporary, create_file(temporary) as file:
        set_own_attributes(file.id, text)
        write_contiguous(file, COORDS, coords)
        group = file.create_group(_SCORES, track_order=True)
        for name, values in columns.items():
            write_contiguous(group, name, values.astype(np.float32))


def add_tile_scores(
    path: Path,
    coords_l0: npt.NDArray[np.integer],
    columns: Mapping[str, npt.NDArray[np.floating]],
    attributes: Mapping[str, object],
) -> None:
    """Put columns beside those that a slide's file has already, or make the file. Columns of one name are replaced.

    Args:
        path: As for :func:`write_tile_scores`, and so are the others.
        coords_l0: (n, 2).
        columns: (n,) for each name.
        attributes: Joined with those of the file.

    Raises:
        StoreError: The file is of other tiles; or as for :func:`write_tile_scores`.
        CorruptFileError: The file is damaged.
    """
    if not path.is_file():
        write_tile_scores(path, coords_l0, columns, attributes)
        return
    there = read_tile_scores(path)
    if not np.array_equal(there.coords_l0, coords_l0):
        fact = f"{path} has scores of {len(there.coords_l0)} tiles, these are of {len(coords_l0)} others"
        raise StoreError(fact, hint="predict again with the same features, or give another output folder")
    write_tile_scores(path, coords_l0, {**there.columns, **columns}, {**there.attributes, **attributes})


def read_tile_scores(path: Path) -> TileScores:
    """Inverse of :func:`write_tile_scores`; columns come back in their order.

    Raises:
        StoreError: There is no such file.
        CorruptFileError: It is damaged, or holds no tile scores.
    """
    with open_file(path) as file:
        coords, attributes = get_dataset(file, COORDS), text_attribute(file.id, _ATTRIBUTES)
        if coords is None or attributes is None or _SCORES not in file:
            raise CorruptFileError(f"{path} holds no tile scores", hint="give a file made by histotl predict")
        columns = {}
        for name in file[_SCORES]:
            values = get_dataset(file[_SCORES], name)
            if values is None or values.shape != coords.shape[:1]:
                raise CorruptFileError(f"{path}: column {name!r} does not have a row for each tile")
            columns[name] = values[()].astype(np.float32)
        return TileScores(
            coords_l0=coords[()].astype(np.int64),
            columns=columns,
            attributes=from_json(attributes, what=_ATTRIBUTES),
        )
