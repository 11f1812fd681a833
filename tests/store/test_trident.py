"""The files as TRIDENT, CLAM and their readers see them, through plain h5py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.provenance import Provenance
from histotl.core.values import TileSpec
from histotl.store.coords import read_coords, write_coords
from histotl.store.embeddings import EmbeddingsMeta, check_file, open_embeddings
from histotl.store.schema import level0_magnification

Write = Callable[..., np.ndarray]
Meta = Callable[..., EmbeddingsMeta]

COORDS_ATTRIBUTES = {
    "patch_size": np.int64(256),
    "patch_size_level0": np.int64(512),
    "level0_magnification": np.int64(40),
    "target_magnification": np.float64(20.0),
    "overlap": np.int64(32),
    "name": "a slide",
    "savetodir": "features_x",
    "level0_width": np.int64(40_000),
    "level0_height": np.int64(30_000),
}


def _attributes_equal(found: h5py.AttributeManager, wanted: dict[str, object]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == value, name
        if isinstance(value, str):
            kind = h5py.check_string_dtype(found.get_id(name).dtype)
            assert (kind.encoding, kind.length) == ("utf-8", None), name
        else:
            assert found.get_id(name).dtype == value.dtype, name
            assert found.get_id(name).shape == (), name


def test_a_features_file_has_tridents_names_types_and_attributes(tmp_path: Path, write_file: Write) -> None:
    path = tmp_path / "features_x" / "a slide.h5"
    spec = TileSpec(tile_px=256, mpp=0.5, overlap_px=32)
    written = write_file(path, 9, 4, dtype="fp32", spec=spec, mpp=0.2503)
    with h5py.File(path, "r") as file:
        features, coords = file["features"], file["coords"]
        assert (features.shape, features.dtype) == ((9, 4), np.float32)
        assert (coords.shape, coords.dtype) == ((9, 2), np.int64)
        np.testing.assert_array_equal(features[:], written)
        _attributes_equal(coords.attrs, COORDS_ATTRIBUTES)
        _attributes_equal(
            features.attrs, {"name": "a slide", "savetodir": "features_x", "encoder": "timm/resnet50.a1_in1k"}
        )
        # Ours beside them: the footprint to the last digit, and no path of this machine anywhere.
        np.testing.assert_allclose(file.attrs["histotl_patch_size_level0_exact"], 256 * 0.5 / 0.2503)
        assert file.attrs["histotl_tile_um"] == 128.0
        assert "secret" not in "".join(str(value) for value in file.attrs.values())
        assert str(tmp_path) not in "".join(str(value) for value in [*coords.attrs.values(), *features.attrs.values()])


def test_a_coordinates_file_has_tridents_names_types_and_attributes(tmp_path: Path, make_meta: Meta) -> None:
    path = tmp_path / "patches" / "a slide_patches.h5"
    meta = make_meta(9, 4, spec=TileSpec(tile_px=256, overlap_px=32))
    write_coords(path, meta.slide, meta.grid, Provenance.now())
    with h5py.File(path, "r") as file:
        assert (file["coords"].shape, file["coords"].dtype) == ((9, 2), np.int64)
        _attributes_equal(file["coords"].attrs, COORDS_ATTRIBUTES | {"savetodir": "patches"})
    found = read_coords(path)
    np.testing.assert_array_equal(found.coords_l0, meta.grid.coords_l0)
    np.testing.assert_array_equal(found.tissue_fraction, meta.grid.tissue_fraction)
    assert found.footprint_l0 == meta.grid.footprint_l0
    assert (found.slide_id, found.patch_size, found.overlap, found.mpp) == ("a slide", 256, 32, 0.25)
    assert (found.level0_width, found.level0_height) == (40_000, 30_000)
    assert TileSpec(**found.tiles) == meta.grid.spec
    assert found.source_fingerprint == "f00d"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_coordinates_of_an_empty_slide(tmp_path: Path, make_meta: Meta) -> None:
    meta = make_meta(0, 4)
    write_coords(tmp_path / "a.h5", meta.slide, meta.grid, Provenance.now())
    assert read_coords(tmp_path / "a.h5").coords_l0.shape == (0, 2)


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.1213, 80), (0.1999, 60), (0.2503, 40), (0.2999, 40), (0.3, 20), (0.499, 20), (1.0, 10), (2.3, 5), (28.97, 1)],
)
def test_nominal_magnification_has_tridents_bins(mpp: float, magnification: int) -> None:
    assert level0_magnification(mpp) == magnification


@pytest.mark.parametrize(
    ("mpp", "side"),
    [
        (0.2503, 512),  # nominal, though the exact side is 511.4
        (0.2494, 512),
        (0.499, 256),
        (0.31, 413),  # "20x" by TRIDENT's bins would be 256, 38 % off
        (1.0, 128),
        (28.97, 4),  # no bin at all
    ],
)
def test_patch_size_level0_is_nominal_unless_that_is_far_off(
    tmp_path: Path, write_file: Write, mpp: float, side: int
) -> None:
    write_file(tmp_path / "s.h5", 2, 2, mpp=mpp, spec=TileSpec(tile_px=256))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["coords"].attrs["patch_size_level0"] == side


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("leading", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_tridents_own_files_are_read(tmp_path: Path, dtype: str, leading: bool, chunked: bool) -> None:
    path = tmp_path / "TCGA.h5"
    features = np.random.default_rng(0).normal(size=(9000, 3)).astype(dtype)
    coords = np.arange(18_000, dtype=np.int64).reshape(-1, 2)
    stored = features[None] if leading else features
    with h5py.File(path, "w") as file:
        chunks = {"chunks": (*stored.shape[:-2], 1, 3), "maxshape": (None,) * stored.ndim} if chunked else {}
        made = file.create_dataset("features", data=stored, **chunks)
        made.attrs.update({"name": "TCGA-1", "savetodir": "d", "encoder": "uni_v2"})
        file.create_dataset("coords", data=coords).attrs.update({"patch_size_level0": 512.0, "name": "TCGA-1"})
    with open_embeddings(path) as found:
        assert (found.n, found.dim, found.slide_id, found.encoder) == (9000, 3, "TCGA-1", "uni_v2")
        assert (found.identity, found.card, found.provenance, found.digest) == (None, None, None, "")
        assert found.footprint_l0 == (512.0, 512.0)
        assert found.read().dtype == np.float32
        np.testing.assert_array_equal(found.read(), features.astype(np.float32))
        np.testing.assert_array_equal(found.coords_l0, coords)
        rows = np.array([8999, 0, -1, 4096, 0, 17])
        for got in (found.read(rows, dtype=dtype), found.features[rows]):
            np.testing.assert_array_equal(got, features[rows])
        np.testing.assert_array_equal(found.features[10:20], features[10:20])
        np.testing.assert_array_equal(found.features[20:10], features[20:10])
        np.testing.assert_array_equal(found.features[::1000], features[::1000])
        np.testing.assert_array_equal(found.features[-3], features[-3])
        np.testing.assert_array_equal(np.asarray(found.features), features)
        assert isinstance(found.features, np.memmap) is not chunked
    assert check_file(path) == []


def test_a_file_behind_a_user_block_is_mapped_at_the_right_place(tmp_path: Path) -> None:
    features = np.arange(20, dtype=np.float32).reshape(5, 4)
    with h5py.File(tmp_path / "u.h5", "w", userblock_size=512) as file:
        file["features"] = features
    np.testing.assert_array_equal(open_embeddings(tmp_path / "u.h5").read(), features)


def test_clams_features_and_coordinates_are_read(tmp_path: Path) -> None:
    features = np.ones((40, 6), np.float32)
    coords = np.arange(80, dtype=np.int32).reshape(-1, 2)
    with h5py.File(tmp_path / "slide_1.h5", "w") as file:
        file.create_dataset("features", data=features, chunks=(32, 6))
        file.create_dataset("coords", data=coords, chunks=(32, 2))
    found = open_embeddings(tmp_path / "slide_1.h5")
    assert (found.slide_id, found.footprint_l0) == ("slide_1", None)
    assert found.coords_l0.dtype == np.int64
    np.testing.assert_array_equal(found.coords_l0, coords)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        made = file.create_dataset("coords", data=coords.astype(np.int64))
        made.attrs.update({"patch_size": 256, "patch_level": 1, "downsample": (4.0001, 4.0), "name": "slide_1"})
    tiles = read_coords(tmp_path / "c.h5")
    assert tiles.footprint_l0 == (256 * 4.0001, 1024.0)
    assert tiles.slide_id == "slide_1"
