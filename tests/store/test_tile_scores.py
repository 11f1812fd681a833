from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.errors import CorruptFileError, StoreError
from histotl.store.tile_scores import read_tile_scores, write_tile_scores

COORDS = np.arange(8).reshape(4, 2)


def test_columns_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "tile_scores" / "a.h5"
    columns = {
        "ood_score": np.array([1.0, np.nan, 3, 4]),
        "attention": np.ones(4, np.float16),
        "task:class": np.zeros(4),
    }
    write_tile_scores(path, COORDS, columns, {"slide_id": "a", "footprint_l0": np.array([1.5, 2])})
    found = read_tile_scores(path)
    np.testing.assert_array_equal(found.coords_l0, COORDS)
    assert list(found.columns) == list(columns)
    for name, values in columns.items():
        assert found.columns[name].dtype == np.float32
        np.testing.assert_array_equal(found.columns[name], values)
    assert found.attributes == {"slide_id": "a", "footprint_l0": [1.5, 2.0]}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.h5"]


def test_a_slide_without_tiles(tmp_path: Path) -> None:
    write_tile_scores(tmp_path / "a.h5", np.zeros((0, 2), int), {"attention": np.zeros(0)}, {})
    found = read_tile_scores(tmp_path / "a.h5")
    assert found.coords_l0.shape == (0, 2)
    assert found.columns["attention"].shape == (0,)


@pytest.mark.parametrize(
    ("coords", "columns"),
    [(COORDS, {"a": np.zeros(3)}), (COORDS, {"a/b": np.zeros(4)}), (COORDS, {"": np.zeros(4)}), (COORDS[:, :1], {})],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, coords: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    with pytest.raises(StoreError):
        write_tile_scores(tmp_path / "a.h5", coords, columns, {})
    with pytest.raises(StoreError, match="JSON"):
        write_tile_scores(tmp_path / "a.h5", COORDS, {}, {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = COORDS
    with pytest.raises(CorruptFileError, match="no tile scores"):
        read_tile_scores(tmp_path / "a.h5")
    write_tile_scores(tmp_path / "b.h5", COORDS, {"a": np.zeros(4)}, {})
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["scores/b"] = np.zeros(3)
    with pytest.raises(CorruptFileError, match="'b'"):
        read_tile_scores(tmp_path / "b.h5")
