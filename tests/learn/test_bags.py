from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import histotl.learn.maps as maps_module
from histotl.core.errors import CorruptFileError, IdentityError, StoreError, UsageError
from histotl.learn.bags import Bags, BagStore
from histotl.learn.rows import ArrayRows, FileRows
from histotl.store.embeddings import open_embeddings

Write = Callable[..., Path]
LITTLE = 1e-9
"""A memory budget that nothing fits into."""


def slides(folder: Path, write_slide: Write, sizes: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n, 16)).astype(np.float32) for n in sizes]
    for i, x in enumerate(arrays):
        write_slide(folder, f"S{i}", x)
    return arrays


@pytest.mark.parametrize("memory_gb", [LITTLE, 1.0])
def test_bags_from_files(tmp_path: Path, write_slide: Write, monkeypatch: pytest.MonkeyPatch, memory_gb: float) -> None:
    monkeypatch.setattr(maps_module, "OPEN_FILES", 2)
    arrays = slides(tmp_path, write_slide, [3, 1, 5, 2])
    store = BagStore.open(tmp_path, memory_gb=memory_gb)
    assert store.source.residency == ("maps" if memory_gb == LITTLE else "memory")
    assert (store.kind, store.ids, store.id_column) == ("slides", ("S0", "S1", "S2", "S3"), "slide_id")
    bags = store.bags([[2], [0, 3], [1]])
    packed = bags.gather(np.array([0, 2, 1]))
    np.testing.assert_array_equal(packed.x, np.concatenate([arrays[2], arrays[1], arrays[0], arrays[3]]))
    assert packed.offsets.tolist() == [0, 5, 6, 11]
    assert packed.coords is not None
    assert packed.coords[:2].tolist() == [[0, 0, 3], [448, 0, 3]]
    assert packed.coords[:, 2].tolist() == [3] * 5 + [2] + [1] * 3 + [4] * 2, (
        "a bag joins slides: which tile is of which"
    )
    kept = bags.subset(np.array([1])).thinned(4, seed=0).gather(np.array([0]))
    assert kept.coords is not None
    assert kept.coords.shape == (4, 3)
    alone = store.bags([[2], [1]]).gather(np.array([0, 1])).coords
    assert alone is not None
    assert alone.shape == (6, 2), "where none does, corners are all"
    assert store.spans(bags.rows_of(1)) == [("S0", slice(0, 3)), ("S3", slice(3, 5))]
    mixed = np.array([10, 0, 4, 3, 10])
    np.testing.assert_array_equal(store.source.read(mixed), np.concatenate(arrays)[mixed])


def test_patch_sets_are_rows(tmp_path: Path, write_patches: Write) -> None:
    x = np.random.default_rng(0).normal(size=(4, 16))
    store = BagStore.open(write_patches(tmp_path / "p.h5", ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c"], x))
    assert (store.kind, store.ids[2], store.id_column) == ("patches", "b/1.jpg", "path")
    packed = store.bags([[3], [0, 2]]).gather(np.array([1, 0]))
    np.testing.assert_allclose(packed.x, x[[0, 2, 3]].astype(np.float32))
    assert packed.coords is None


def test_chunks_cover_all_bags_in_order() -> None:
    sizes = [4, 4, 1, 30, 2, 2]
    bags = Bags.of(ArrayRows(np.zeros((43, 2))), np.split(np.arange(43), np.cumsum(sizes)[:-1]))
    chunks = list(bags.chunks(8))
    assert np.concatenate(chunks).tolist() == list(range(6))
    assert [bags.sizes[c].sum() for c in chunks] == [8, 1, 30, 4]


def test_thinning_is_without_replacement_and_only_where_needed() -> None:
    bags = Bags.of(ArrayRows(np.arange(60.0).reshape(30, 2)), [np.arange(3), np.arange(3, 30)])
    packed = bags.gather(np.array([0, 1]), max_tiles=10, rng=np.random.default_rng(0))
    assert packed.offsets.tolist() == [0, 3, 13]
    assert len(torch.unique(packed.x[:, 0])) == 13
    tiles, owner = bags.tiles(10, seed=0)
    assert owner.tolist() == [0] * 3 + [1] * 10
    assert tiles.sizes.tolist() == [1] * 13
    np.testing.assert_array_equal(tiles.rows, bags.tiles(10, seed=0)[0].rows)


def test_empty_bags_and_bad_numbers_are_refused() -> None:
    with pytest.raises(StoreError, match="bag 1 holds no tile"):
        Bags.of(ArrayRows(np.zeros((3, 2))), [np.arange(3), np.arange(0)])
    x = np.zeros((3, 2))
    x[1, 0] = np.nan
    with pytest.raises(CorruptFileError, match="1 of 3 rows"):
        ArrayRows(x).read(np.arange(3))


@pytest.mark.parametrize("memory_gb", [LITTLE, 1.0])
def test_nan_on_disk_is_refused(tmp_path: Path, write_slide: Write, memory_gb: float) -> None:
    path = write_slide(tmp_path, "S", np.zeros((4, 16)))
    with h5py.File(path, "r+") as file:
        file["features"][2, 3] = np.nan
    with pytest.raises(CorruptFileError, match=r"S\.h5: 1 of 4 rows"):
        FileRows([open_embeddings(path)], memory_gb=memory_gb).read(np.arange(4))


def test_files_that_do_not_go_together_are_refused(tmp_path: Path, write_slide: Write, write_patches: Write) -> None:
    x = np.zeros((2, 16))
    write_slide(tmp_path / "a", "S0", x)
    write_slide(tmp_path / "a", "S1", x, stain="macenko")
    with pytest.raises(IdentityError, match="stain: 'none' != 'macenko'"):
        BagStore.open(tmp_path / "a")
    write_slide(tmp_path / "b", "S0", x)
    with h5py.File(tmp_path / "b" / "other.h5", "w") as file:
        file["features"] = np.zeros((2, 16), dtype=np.float32)
        file["coords"] = np.zeros((2, 2), dtype=np.int64)
    with pytest.raises(IdentityError, match=r"other\.h5 does not say"):
        BagStore.open(tmp_path / "b")
    (tmp_path / "b" / "S0.h5").unlink()
    assert BagStore.open(tmp_path / "b").identity is None
    write_patches(tmp_path / "c" / "one.h5", ["x", "y"], x)
    write_patches(tmp_path / "c" / "two.h5", ["y", "z"], x)
    with pytest.raises(StoreError, match="are called 'y'"):
        BagStore.open(tmp_path / "c")
    write_slide(tmp_path / "d", "S", x)
    write_patches(tmp_path / "d" / "p.h5", ["x", "y"], x)
    with pytest.raises((UsageError, IdentityError)):
        BagStore.open(tmp_path / "d")
