"""The store on files that other tools made from real slides."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.errors import CorruptFileError
from histotl.store.coords import read_coords
from histotl.store.embeddings import check_file, open_embeddings


@pytest.fixture
def stamp_file(real_data: Path) -> Path:
    found = sorted((real_data / "features").glob("TCGA-*.h5"))
    assert found, "the real data has no features file"
    return found[0]


def test_a_stamp_file_is_told_from_ours(stamp_file: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"not a histotl or TRIDENT features file.*looks like STAMP") as caught:
        open_embeddings(stamp_file)
    assert "rename feats to features" in caught.value.hint
    assert len(check_file(stamp_file)) == 1


def test_its_coordinates_are_read(stamp_file: Path) -> None:
    found = read_coords(stamp_file)
    assert found.coords_l0.shape == (777, 2)
    assert found.slide_id == stamp_file.stem
    assert found.footprint_l0 is None


def test_the_cure_that_the_message_gives_works(stamp_file: Path, tmp_path: Path) -> None:
    path = tmp_path / stamp_file.name
    with h5py.File(stamp_file) as source, h5py.File(path, "w") as file:
        source.copy("feats", file, "features")
        source.copy("coords", file)
        features = source["feats"][()]
    with open_embeddings(path) as found:
        assert (found.n, found.dim, found.identity) == (777, 512, None)
        np.testing.assert_array_equal(found.read(), features)
        np.testing.assert_array_equal(found.features[np.array([776, 3])], features[[776, 3]])
    assert check_file(path) == []
