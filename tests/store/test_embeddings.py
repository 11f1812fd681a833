"""Laws of the embeddings file: what goes in comes out, and nothing else does."""

from __future__ import annotations

import dataclasses
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histotl.core.errors import StoreError
from histotl.core.values import TileSpec
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, check_file, is_current, open_embeddings

Write = Callable[..., np.ndarray]
Meta = Callable[..., EmbeddingsMeta]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(0, 40), dim=st.integers(1, 9), dtype=st.sampled_from(["fp16", "fp32"]))
def test_rows_in_any_order_and_split_come_back_exactly(
    data: st.DataObject, n: int, dim: int, dtype: str, make_meta: Meta, tmp_path_factory: pytest.TempPathFactory
) -> None:
    width = 16 if dtype == "fp16" else 32
    numbers = st.floats(width=width, allow_nan=False, allow_infinity=False)
    features = data.draw(hnp.arrays(f"float{width}", (n, dim), elements=numbers))
    order = np.array(data.draw(st.permutations(range(n))), dtype=np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    path = tmp_path_factory.mktemp("law") / "s.h5"
    with EmbeddingsWriter(path, n=n, dim=dim, dtype=dtype, meta=make_meta(n, dim, dtype=dtype)) as writer:
        for rows in np.split(order, cuts):
            writer.put(rows, features[rows].astype(np.float32))
        writer.seal()
    rows = np.array(data.draw(st.lists(st.integers(-n, n - 1), max_size=6)) if n else [], dtype=np.int64)
    with open_embeddings(path) as found:
        assert (found.n, found.dim, len(found)) == (n, dim, n)
        np.testing.assert_array_equal(found.read(dtype=features.dtype), features)
        np.testing.assert_array_equal(np.asarray(found.features[:]), features)
        np.testing.assert_array_equal(found.read(rows), features[rows].astype(np.float32))
        np.testing.assert_array_equal(found.read(slice(1, None, 2)), features[1::2].astype(np.float32))
        assert found.read().flags.writeable
    assert check_file(path) == []
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][()], features)


def test_everything_beside_the_rows_comes_back(tmp_path: Path, write_file: Write, make_meta: Meta) -> None:
    path = tmp_path / "s.h5"
    write_file(path, 7, 5, mpp=0.26)
    found, meta = open_embeddings(path), make_meta(7, 5, mpp=0.26)
    assert found.identity == meta.identity
    assert not found.identity.differences(meta.identity)
    assert found.card == meta.card
    assert found.provenance.specs == {"stain": "none"}
    assert found.slide_id == "a slide"
    np.testing.assert_array_equal(found.coords_l0, meta.grid.coords_l0)
    assert found.coords_l0.dtype == np.int64
    np.testing.assert_array_equal(found.tissue_fraction, meta.grid.tissue_fraction)
    assert found.footprint_l0 == meta.grid.footprint_l0
    assert found.tile_um == 112.0
    assert (found.mpp, found.mpp_source) == (0.26, "aperio.MPP")
    assert found.source_fingerprint == "f00d"
    assert found.stain_state == {"matrix": np.eye(3).tolist(), "fitted": True}
    assert found.items == ()
    assert found.dtype == np.float16
    assert found.encoder == "timm/resnet50.a1_in1k"


def test_a_patch_set_keeps_its_order_and_any_text(tmp_path: Path, make_meta: Meta) -> None:
    path, items = tmp_path / "set.h5", ("b/2.png", "a/1.png", "größe µ 漢.png", "a/1.png", "")
    base = make_meta(5, 2, patches=True)
    meta = EmbeddingsMeta(
        identity=base.identity, card=base.card, provenance=base.provenance, items=items, source_fingerprint="beef"
    )
    with EmbeddingsWriter(path, n=5, dim=2, dtype="fp16", meta=meta) as writer:
        writer.put(np.arange(5), np.zeros((5, 2), np.float32))
        writer.seal()
    found = open_embeddings(path)
    assert found.items == items
    assert found.coords_l0 is None
    assert found.tissue_fraction is None
    assert (found.footprint_l0, found.mpp, found.tile_um) == (None, None, None)
    assert found.slide_id == "set"
    assert found.identity.tiles == {"patches": True}
    assert check_file(path) == []
    with h5py.File(path) as file:
        assert [text.decode() for text in file["items"]] == list(items)


def test_empty_slides_and_empty_patch_sets_are_files_like_others(tmp_path: Path, write_file: Write) -> None:
    for name, patches in (("slide.h5", False), ("set.h5", True)):
        write_file(tmp_path / name, 0, 5, patches=patches)
        found = open_embeddings(tmp_path / name)
        assert found.read().shape == (0, 5)
        assert found.features[:].shape == (0, 5)
        assert check_file(tmp_path / name) == []
    assert open_embeddings(tmp_path / "slide.h5").coords_l0.shape == (0, 2)


def test_features_are_one_aligned_block_and_mapped_from_it(tmp_path: Path, write_file: Write) -> None:
    path = tmp_path / "s.h5"
    written = write_file(path, 500, 33)
    with h5py.File(path) as file:
        dataset = file["features"]
        assert (dataset.chunks, dataset.compression) == (None, None)
        assert dataset.id.get_offset() % 4096 == 0
        by_library = dataset[()]
    with open_embeddings(path) as found:
        assert isinstance(found.features, np.memmap)
        assert not found.features.flags.writeable
        np.testing.assert_array_equal(found.features, by_library)
        np.testing.assert_array_equal(found.features, written.astype(np.float16))
    assert "features" not in vars(found)


def test_open_files_travel_to_other_processes_without_their_rows(tmp_path: Path, write_file: Write) -> None:
    written = write_file(tmp_path / "s.h5", 1000, 20)
    found = open_embeddings(tmp_path / "s.h5")
    assert found.features.shape == (1000, 20)
    sent = pickle.dumps(found)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).read(), written)


@pytest.mark.parametrize(
    ("value", "told"), [(70_000.0, "beyond the range"), (np.inf, "must be finite"), (np.nan, "must be finite")]
)
def test_values_that_fp16_cannot_hold_are_refused_by_row(
    tmp_path: Path, make_meta: Meta, value: float, told: str
) -> None:
    features = np.zeros((4, 3), np.float32)
    features[2, 1] = value
    with EmbeddingsWriter(tmp_path / "s.h5", n=9, dim=3, dtype="fp16", meta=make_meta(9, 3)) as writer:
        with pytest.raises(StoreError, match=told) as caught:
            writer.put(np.array([3, 4, 8, 5]), features)
        assert "row 8, column 1" in caught.value.message
        assert "fp32" in caught.value.hint
        with pytest.raises(StoreError, match="9 of 9 rows missing"):
            writer.seal()


def test_values_beyond_fp16_fit_into_fp32(tmp_path: Path, make_meta: Meta) -> None:
    meta = make_meta(1, 2, dtype="fp32")
    with EmbeddingsWriter(tmp_path / "s.h5", n=1, dim=2, dtype="fp32", meta=meta) as writer:
        writer.put(np.array([0]), np.array([[70_000, -1e30]], np.float32))
        writer.seal()
    np.testing.assert_array_equal(open_embeddings(tmp_path / "s.h5").read(), np.float32([[70_000, -1e30]]))


def test_a_writer_that_is_not_sealed_leaves_nothing(tmp_path: Path, make_meta: Meta) -> None:
    path = tmp_path / "s.h5"
    with EmbeddingsWriter(path, n=3, dim=2, dtype="fp16", meta=make_meta(3, 2)) as writer:
        writer.put(np.arange(3), np.ones((3, 2), np.float32))
        assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ZeroDivisionError), EmbeddingsWriter(path, n=3, dim=2, dtype="fp16", meta=make_meta(3, 2)):
        _ = 1 // 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="sealed or aborted"):
        writer.put(np.arange(3), np.ones((3, 2), np.float32))
    with pytest.raises(StoreError, match="sealed or aborted"):
        writer.seal()


def test_an_old_file_stays_until_the_new_one_is_sealed(tmp_path: Path, write_file: Write, make_meta: Meta) -> None:
    path = tmp_path / "s.h5"
    old = write_file(path, 3, 2)
    with EmbeddingsWriter(path, n=3, dim=2, dtype="fp16", meta=make_meta(3, 2)) as writer:
        writer.put(np.arange(3), np.ones((3, 2), np.float32))
        np.testing.assert_array_equal(open_embeddings(path).read(), old)
        writer.seal()
    np.testing.assert_array_equal(open_embeddings(path).read(), np.ones((3, 2)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.h5"]


@pytest.mark.parametrize(
    ("rows", "shape", "told"),
    [
        ([0, 3], (2, 2), "row 3 does not exist"),
        ([-1], (1, 2), "row -1 does not exist"),
        ([1, 1], (2, 2), "row 1 .* twice"),
        ([0], (1, 3), "shape"),
        ([0, 1], (1, 2), "shape"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, make_meta: Meta, rows: list[int], shape: tuple[int, int], told: str):
    with EmbeddingsWriter(tmp_path / "s.h5", n=3, dim=2, dtype="fp16", meta=make_meta(3, 2)) as writer:
        with pytest.raises(StoreError, match=told):
            writer.put(np.array(rows), np.zeros(shape, np.float32))
        writer.put(np.array([2]), np.zeros((1, 2), np.float32))
        with pytest.raises(StoreError, match=r"row 2 .* twice"):
            writer.put(np.array([2]), np.zeros((1, 2), np.float32))
        with pytest.raises(StoreError, match=r"2 of 3 rows missing \(0, 1\)"):
            writer.seal()


@pytest.mark.parametrize(
    ("more", "told"), [({"n": 4}, "4"), ({"dim": 3}, "3"), ({"dtype": "fp32"}, "fp32"), ({"dtype": "bf16"}, "bf16")]
)
def test_a_writer_that_contradicts_its_meta_is_refused(
    tmp_path: Path, make_meta: Meta, more: dict[str, object], told: str
) -> None:
    with pytest.raises(StoreError, match=told):
        EmbeddingsWriter(tmp_path / "s.h5", **({"n": 3, "dim": 2, "dtype": "fp16", "meta": make_meta(3, 2)} | more))
    assert list(tmp_path.iterdir()) == []


def test_a_grid_that_contradicts_itself_is_refused(tmp_path: Path, make_meta: Meta) -> None:
    meta = make_meta(3, 2)
    grid = dataclasses.replace(meta.grid, tissue_fraction=np.ones(2, np.float32))
    with pytest.raises(StoreError, match="tissue fractions"):
        EmbeddingsWriter(tmp_path / "s.h5", n=3, dim=2, dtype="fp16", meta=dataclasses.replace(meta, grid=grid))
    with pytest.raises(StoreError, match="both the slide and its grid"):
        dataclasses.replace(meta, grid=None)
    with pytest.raises(StoreError, match="not both"):
        dataclasses.replace(meta, items=("a",))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, make_meta: Meta) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        EmbeddingsWriter(tmp_path / "file" / "s.h5", n=3, dim=2, dtype="fp16", meta=make_meta(3, 2))


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, make_meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with EmbeddingsWriter(tmp_path / "s.h5", n=3, dim=2, dtype="fp16", meta=make_meta(3, 2)) as writer:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match="No space left"):
            writer.put(np.arange(3), np.zeros((3, 2), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_sealing_leaves_nothing(
    tmp_path: Path, make_meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = EmbeddingsWriter(tmp_path / "s.h5", n=1, dim=2, dtype="fp16", meta=make_meta(1, 2))
    writer.put(np.arange(1), np.zeros((1, 2), np.float32))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        writer.seal()
    assert list(tmp_path.iterdir()) == []


def test_only_a_whole_file_of_the_same_identity_and_source_is_current(
    tmp_path: Path, write_file: Write, make_meta: Meta
) -> None:
    path = tmp_path / "s.h5"
    identity = make_meta(7, 5).identity
    assert not is_current(path, identity, "f00d")
    write_file(path, 7, 5)
    assert is_current(path, identity, "f00d")
    assert not is_current(path, identity, "another slide")
    assert not is_current(path, make_meta(7, 5, stain="macenko").identity, "f00d")
    assert not is_current(path, make_meta(7, 5, spec=TileSpec(mpp=0.6)).identity, "f00d")
    path.write_bytes(path.read_bytes()[:-100])
    assert not is_current(path, identity, "f00d")


def test_rights_follow_the_umask_so_that_a_group_can_read(tmp_path: Path) -> None:
    # In a process of its own: the umask belongs to all threads.
    code = """
import os, sys, numpy as np
from pathlib import Path
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter
os.umask(0o027)
card = BackboneCard(name="x", dim=1, pooling="avg", input_px=1, mean=(0, 0, 0), std=(1, 1, 1))
identity = FeatureIdentity.of(card, None, stain="none", compute="fp32", dtype="fp16")
meta = EmbeddingsMeta(identity=identity, card=card, provenance=Provenance.now(), items=("a",))
with EmbeddingsWriter(Path(sys.argv[1]), n=1, dim=1, dtype="fp16", meta=meta) as writer:
    writer.put(np.array([0]), np.ones((1, 1)))
    writer.seal()
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "s.h5"], check=True, timeout=60)
    assert stat.S_IMODE((tmp_path / "s.h5").stat().st_mode) == 0o640
