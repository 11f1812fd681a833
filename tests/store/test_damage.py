"""Damaged files are found, and strangers' files are safe to open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.errors import CorruptFileError, StoreError
from histotl.store.coords import read_coords
from histotl.store.embeddings import EmbeddingsMeta, check_file, is_current, open_embeddings

Write = Callable[..., np.ndarray]

SEAL = 53
"""Bytes of the line after the end of the HDF5 data."""


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_is_found(tmp_path: Path, write_file: Write, kept: float) -> None:
    path = tmp_path / "s.h5"
    write_file(path, 200, 64)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CorruptFileError, match=r"s\.h5"):
        open_embeddings(path)
    assert len(check_file(path)) == len(check_file(path, deep=False)) == 1


@pytest.mark.parametrize("lost", [1, 30, SEAL - 1, SEAL])
def test_a_file_that_lost_its_last_bytes_is_found_though_its_values_are_whole(
    tmp_path: Path, write_file: Write, make_meta: Callable[..., EmbeddingsMeta], lost: int
) -> None:
    path = tmp_path / "s.h5"
    written = write_file(path)
    path.write_bytes(path.read_bytes()[:-lost])
    assert "the seal is missing" in check_file(path)[0]
    assert "the seal is missing" in check_file(path, deep=False)[0]
    assert not is_current(path, make_meta(7, 5).identity, "f00d")
    np.testing.assert_array_equal(open_embeddings(path).read(), written)


@pytest.mark.parametrize("name", ["features", "coords", "tissue_fraction"])
def test_one_flipped_bit_in_any_value_is_found(tmp_path: Path, write_file: Write, name: str) -> None:
    path = tmp_path / "s.h5"
    write_file(path, 50, 16)
    whole = path.read_bytes()
    with h5py.File(path) as file:
        start, size = file[name].id.get_offset(), file[name].id.get_storage_size()
    for place in np.random.default_rng(0).integers(start, start + size, 8):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert check_file(path) == ["the seal differs: bytes of the file were changed after it was made"], place
        # Without the seal, as after a copy by another tool, the digest still tells.
        path.write_bytes(damaged[:-SEAL])
        assert any("the digest differs" in problem for problem in check_file(path)), place
    path.write_bytes(whole)
    assert check_file(path) == []


def test_a_file_that_was_opened_for_writing_is_found(tmp_path: Path, write_file: Write) -> None:
    path = tmp_path / "s.h5"
    for change in ("histotl_slide_id", "histotl_source_fingerprint"):
        write_file(path)
        with h5py.File(path, "r+") as file:
            file.attrs[change] = "another"
        assert check_file(path) == ["the seal is missing: the file is cut short or was changed after it was made"]
    write_file(path, patches=True)
    with h5py.File(path, "r+") as file:
        file["items"][0], file["items"][1] = file["items"][1], file["items"][0]
    assert ["digest" in problem for problem in check_file(path)] == [False, True]


@pytest.mark.parametrize("patches", [False, True])
def test_damage_anywhere_is_found(tmp_path: Path, write_file: Write, patches: bool) -> None:
    path = tmp_path / "s.h5"
    write_file(path, 20, 8, patches=patches)
    whole = path.read_bytes()
    for place in [*np.random.default_rng(1).integers(0, len(whole), 200), *range(len(whole) - SEAL, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert check_file(path), place
        if patches and place < len(whole) - SEAL:
            with pytest.raises(CorruptFileError):
                _ = open_embeddings(path).items


def test_damage_to_the_structure_is_found_when_the_file_is_opened(tmp_path: Path, write_file: Write) -> None:
    path = tmp_path / "s.h5"
    written = write_file(path, 20, 8)
    whole = path.read_bytes()
    identity = open_embeddings(path).identity
    with h5py.File(path) as file:
        end = file["features"].id.get_offset()
    found = 0
    for place in np.random.default_rng(2).integers(0, end, 300):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            opened = open_embeddings(path)
        except CorruptFileError:
            found += 1
        else:  # a byte that nothing reads: the header's checksum keeps the rest
            assert opened.identity == identity
            np.testing.assert_array_equal(opened.read(), written)
    assert found > 20


def test_values_that_are_not_finite_are_found_in_files_without_a_digest(tmp_path: Path) -> None:
    features = np.zeros((5, 3), np.float32)
    features[3, 1] = np.nan
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["features"] = features
    assert check_file(tmp_path / "t.h5") == ["row 3 of the features is not finite"]
    assert check_file(tmp_path / "t.h5", deep=False) == []


def test_corners_outside_the_slide_are_found(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["features"] = np.zeros((2, 3), np.float32)
        file["coords"] = np.array([[0, 0], [5000, 10]])
        file["coords"].attrs["level0_width"] = 4000
    assert check_file(tmp_path / "t.h5") == ["the tile of row 1 begins at (5000, 10), outside the slide"]


def _with(name: str, value: object) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        file["features"] = np.zeros((4, 3), np.float32)
        file[name] = value

    return make


def _stamp(file: h5py.File) -> None:
    file["feats"], file["coords"] = np.zeros((4, 3), np.float16), np.zeros((4, 2), np.float32)


def _atlaspatch(file: h5py.File) -> None:
    file["features/resnet50"], file["coords"] = np.zeros((4, 3)), np.zeros((4, 5), np.int32)


def _external_link(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("other.h5", "/features")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("features", (4, 3), np.float32, external=[("secret.bin", 0, 48)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "features", (4, 3))
    file.create_virtual_dataset("features", layout)


def _objects(file: h5py.File) -> None:
    file.create_dataset("features", (4, 3), dtype=h5py.vlen_dtype(np.float32))


def _references(file: h5py.File) -> None:
    file.create_dataset("features", (4, 3), dtype=h5py.ref_dtype)


def _newer(file: h5py.File) -> None:
    file["features"] = np.zeros((4, 3), np.float32)
    file.attrs["histotl_schema"] = 99


def _no_identity(file: h5py.File) -> None:
    file["features"] = np.zeros((4, 3), np.float32)
    file.attrs["histotl_schema"] = 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_stamp, "not a histotl or TRIDENT features file.*looks like STAMP"),
        (_atlaspatch, "AtlasPatch"),
        (_external_link, "link to elsewhere"),
        (_external_storage, "another file"),
        (_virtual, "another file"),
        (_objects, "type object"),
        (_references, "type object"),
        (_newer, "schema version 99"),
        (_no_identity, "lacks the attributes"),
        (lambda file: None, "not a histotl or TRIDENT features file"),
        (lambda file: file.create_dataset("coords", data=np.zeros((4, 2), int)), "coordinates file"),
        (lambda file: file.create_dataset("features", data=np.zeros(7)), "slide features"),
        (lambda file: file.create_dataset("features", data=np.zeros((2, 3, 4))), r"\(2, 3, 4\)"),
        (lambda file: file.create_dataset("features", data=np.zeros((2, 3), int)), "floating-point"),
        (lambda file: file.create_dataset("features", data=h5py.Empty("f4")), "type"),
        (_with("coords", np.zeros((3, 2), int)), "4 rows"),
        (_with("coords", np.zeros((4, 3), int)), "4 rows"),
        (_with("coords", np.zeros((4, 2))), "whole level-0 pixels"),
        (_with("tissue_fraction", np.zeros(5)), "4 rows"),
        (_with("items", ["a"]), "4 rows"),
        (_with("items", np.zeros((4, 2))), "type"),
    ],
)
def test_what_is_no_features_file_gets_a_clear_answer(
    tmp_path: Path, make: Callable[[h5py.File], None], told: str
) -> None:
    path = tmp_path / "strange.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(StoreError, match=told):
        open_embeddings(path)
    assert len(check_file(path)) == 1


def test_what_is_no_hdf5_gets_a_clear_answer(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("slide_id,label")
    (tmp_path / "empty.h5").touch()
    for name in ("text.h5", "empty.h5"):
        with pytest.raises(CorruptFileError, match="not a whole HDF5 file"):
            open_embeddings(tmp_path / name)
        with pytest.raises(CorruptFileError, match="not a whole HDF5 file"):
            read_coords(tmp_path / name)
    with pytest.raises(StoreError, match="does not exist"):
        open_embeddings(tmp_path / "missing.h5")
    with pytest.raises(StoreError, match="cannot be opened"):
        open_embeddings(tmp_path)


def test_json_that_was_tampered_with_is_refused(tmp_path: Path, write_file: Write) -> None:
    path = tmp_path / "s.h5"
    for key, text in [
        ("histotl_identity", '{"backbone": 1}'),
        ("histotl_identity", "[" * 100_000),
        ("histotl_card", '{"name": "x"}'),
        ("histotl_card", "__import__('os').system('false')"),
        ("histotl_provenance", "{}"),
        ("histotl_stain_state", "[1]"),
    ]:
        write_file(path)
        with h5py.File(path, "r+") as file:
            file.attrs[key] = text
        with pytest.raises(CorruptFileError):
            open_embeddings(path)


def test_a_row_that_does_not_exist_is_named(tmp_path: Path, write_file: Write) -> None:
    write_file(tmp_path / "s.h5", 4, 3)
    found = open_embeddings(tmp_path / "s.h5")
    with pytest.raises(StoreError, match="row 4 does not exist"):
        found.read(np.array([0, 4]))
    with pytest.raises(StoreError, match="whole numbers"):
        found.read(np.array([0.5]))
    (tmp_path / "s.h5").unlink()
    with pytest.raises(StoreError, match="does not exist"):
        found.read()
    with pytest.raises(StoreError, match="does not exist"):
        found.read(np.array([0]))
