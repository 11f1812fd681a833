"""A cohort holds what its files hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import CorruptFileError, IdentityError, StoreError
from histotl.store import zarr_writer
from histotl.store.embeddings import open_embeddings
from histotl.store.zarr_cohort import open_cohort, write_cohort

Write = Callable[..., np.ndarray]


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_writer, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(zarr_writer, "_CHUNKS_A_SHARD", 3)


def _files(folder: Path, write: Write, sizes: list[int], **more: object) -> list[Path]:
    paths = [folder / f"s{i}.h5" for i in range(len(sizes))]
    for i, (path, n) in enumerate(zip(paths, sizes, strict=True)):
        write(path, n, 5, seed=i, slide_id=path.stem, **more)
    return paths


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), patches=st.booleans(), small=st.booleans())
def test_every_file_comes_back(
    sizes: list[int], patches: bool, small: bool, write_file: Write, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cohort")
    paths = _files(folder, write_file, sizes, patches=patches)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(zarr_writer, "_CHUNK_BYTES", 64)
            patch.setattr(zarr_writer, "_CHUNKS_A_SHARD", 3)
        write_cohort(paths, folder / "all.zarr")
    cohort = open_cohort(folder / "all.zarr")
    assert cohort.slide_ids == tuple(path.stem for path in paths)
    for path in paths:
        source, name = open_embeddings(path), path.stem
        entry = cohort.entry(name)
        np.testing.assert_array_equal(cohort.read(name), source.read())
        np.testing.assert_array_equal(cohort.read(name, slice(2, None, 3)), source.read()[2::3])
        np.testing.assert_array_equal(cohort.features[entry.rows], source.features[:])
        assert cohort.items(name) == source.items
        for mine, theirs in (
            (cohort.coords_l0(name), source.coords_l0),
            (cohort.tissue_fraction(name), source.tissue_fraction),
        ):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)
        shared = ("digest", "source_fingerprint", "footprint_l0", "tile_um", "mpp", "mpp_source", "stain_state")
        assert [getattr(entry, key) for key in shared] == [getattr(source, key) for key in shared]
        assert (cohort.identity, cohort.card) == (source.identity, source.card)


@pytest.mark.usefixtures("_small_shards")
def test_the_store_is_sharded_version_3_and_nothing_is_left_over(tmp_path: Path, write_file: Write) -> None:
    write_cohort(_files(tmp_path, write_file, [40, 30]), tmp_path / "all.zarr")
    array = zarr.open_group(tmp_path / "all.zarr", mode="r")["features"]
    assert (array.metadata.zarr_format, array.shape, array.dtype) == (3, (70, 5), np.float16)
    assert array.shards[0] == 3 * array.chunks[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["all.zarr", "s0.h5", "s1.h5"]


def test_mixed_features_are_refused_with_their_differences(tmp_path: Path, write_file: Write) -> None:
    paths = _files(tmp_path, write_file, [3])
    write_file(tmp_path / "m.h5", 3, 5, stain="macenko", slide_id="m")
    with pytest.raises(IdentityError, match="stain: 'none' != 'macenko'"):
        write_cohort([*paths, tmp_path / "m.h5"], tmp_path / "all.zarr")
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["features"] = np.zeros((3, 5), np.float16)
    with pytest.raises(IdentityError, match="not made by histotl"):
        write_cohort([*paths, tmp_path / "t.h5"], tmp_path / "all.zarr")
    with pytest.raises(StoreError, match="two files are called 's0'"):
        write_cohort([*paths, *paths], tmp_path / "all.zarr")
    with pytest.raises(StoreError, match="no files"):
        write_cohort([], tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists()
    write_cohort(paths, tmp_path / "all.zarr")
    with pytest.raises(StoreError, match="exists"):
        write_cohort(paths, tmp_path / "all.zarr")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("array", ["features", "coords", "tissue_fraction"])
def test_damaged_and_lost_shards_are_errors(tmp_path: Path, write_file: Write, array: str) -> None:
    write_cohort(_files(tmp_path, write_file, [40, 60]), tmp_path / "all.zarr")
    read = {"features": "read", "coords": "coords_l0", "tissue_fraction": "tissue_fraction"}[array]
    shard = next(path for path in sorted((tmp_path / "all.zarr" / array / "c").rglob("*")) if path.is_file())
    whole = bytearray(shard.read_bytes())
    whole[5] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(CorruptFileError):
        getattr(open_cohort(tmp_path / "all.zarr"), read)("s0")
    shard.unlink()
    with pytest.raises(CorruptFileError, match="lost"):
        getattr(open_cohort(tmp_path / "all.zarr"), read)("s0")


def test_what_is_no_cohort_gets_a_clear_answer(tmp_path: Path, write_file: Write) -> None:
    with pytest.raises(StoreError, match="no zarr v3 store"):
        open_cohort(tmp_path / "nothing.zarr")
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(CorruptFileError, match="not a cohort"):
        open_cohort(tmp_path / "other.zarr")
    zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    with pytest.raises(StoreError, match="no zarr v3 store"):
        open_cohort(tmp_path / "old.zarr")
    write_cohort(_files(tmp_path, write_file, [3]), tmp_path / "all.zarr")
    cohort = open_cohort(tmp_path / "all.zarr")
    with pytest.raises(StoreError, match="no 'x' among its 1 files"):
        cohort.read("x")
    with pytest.raises(StoreError, match="backwards"):
        cohort.read("s0", slice(None, None, -1))
    zarr.open_group(tmp_path / "all.zarr", mode="r+").attrs["histotl_schema"] = 99
    with pytest.raises(StoreError, match="schema version 99"):
        open_cohort(tmp_path / "all.zarr")
