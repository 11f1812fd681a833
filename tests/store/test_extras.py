"""Augmented views and measures of quality: what else a file may say about every row."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.errors import CorruptFileError, IdentityError, StoreError
from histotl.store import block, digest, zarr_writer
from histotl.store.embeddings import (
    EmbeddingsMeta,
    EmbeddingsWriter,
    QualitySpec,
    ViewSpec,
    check_file,
    is_current,
    open_embeddings,
)
from histotl.store.extras import Extra
from histotl.store.zarr_cohort import open_cohort, write_cohort

Meta = Callable[..., EmbeddingsMeta]

VIEWS = ViewSpec(augment="d4 + hed_jitter(sigma=0.1)", count=3, seed=7)
QUALITY = QualitySpec(columns=("focus", "pen"), measures=("focus(scale=2)", "pen"))
N, DIM = 50, 6


@dataclasses.dataclass(frozen=True)
class Values:
    """What was written, as it must come back."""

    features: np.ndarray
    views: np.ndarray
    quality: np.ndarray


def _values(seed: int, n: int, dtype: str) -> Values:
    rng = np.random.default_rng(seed)
    kind = np.float16 if dtype == "fp16" else np.float32
    quality = rng.normal(size=(n, 2)).astype(np.float32)
    quality[::3, 1] = np.nan
    return Values(rng.normal(size=(n, DIM)).astype(kind), rng.normal(size=(3, n, DIM)).astype(kind), quality)


@pytest.fixture
def write(make_meta: Meta) -> Callable[..., Values]:
    def write(
        path: Path,
        *,
        n: int = N,
        seed: int = 0,
        dtype: str = "fp16",
        extras: tuple[Extra, ...] = (VIEWS, QUALITY),
        mixed: bool = False,
        **more: object,
    ) -> Values:
        values, names = _values(seed, n, dtype), {extra.name for extra in extras}
        meta = dataclasses.replace(make_meta(n, DIM, dtype=dtype, slide_id=path.stem, **more), extras=extras)
        rng = np.random.default_rng(seed)
        order = rng.permutation(n) if mixed else np.arange(n)
        with EmbeddingsWriter(path, n=n, dim=DIM, dtype=dtype, meta=meta) as made:
            for rows in np.array_split(order, 7):
                made.put(rows, values.features[rows].astype(np.float32))
                for view in range(3) if "views" in names else ():
                    made.put_view(view, rows, values.views[view, rows].astype(np.float32))
                if "quality" in names:
                    made.put_quality(rows, values.quality[rows])
            made.seal()
        return values

    return write


def _same(found: object, values: Values) -> None:
    np.testing.assert_array_equal(found.read(dtype=values.features.dtype), values.features)
    for view in range(3):
        np.testing.assert_array_equal(found.read(dtype=values.views.dtype, view=view), values.views[view])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 100, 2**20])
@pytest.mark.parametrize(("dtype", "patches", "n"), [("fp16", False, N), ("fp32", True, N), ("fp16", False, 0)])
def test_what_goes_in_comes_out(
    tmp_path: Path,
    write: Callable[..., Values],
    dtype: str,
    patches: bool,
    n: int,
    piece_bytes: int,
    mixed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(digest, "BLOCK_BYTES", 100)
    path = tmp_path / "s.h5"
    values = write(path, n=n, dtype=dtype, patches=patches, mixed=mixed)
    assert check_file(path) == []
    with open_embeddings(path) as found:
        _same(found, values)
        assert (found.view_spec, found.extras) == (VIEWS, {"views": VIEWS, "quality": QUALITY})
        assert found.quality.spec == QUALITY
        np.testing.assert_array_equal(found.quality.values, values.quality)
        np.testing.assert_array_equal(found.quality.column("pen"), values.quality[:, 1])
        if n:
            rows = np.array([3, -1, 3])
            np.testing.assert_array_equal(found.read(rows, dtype=values.views.dtype, view=2), values.views[2, rows])
            assert "views" not in vars(found)  # nothing stays open that was not open before
            assert isinstance(found.views, np.memmap)
        np.testing.assert_array_equal(found.views, values.views)
    assert "views" not in vars(found)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["views"][()], values.views)
        np.testing.assert_array_equal(file["quality"][()], values.quality)
        assert file["views"].chunks is None
        assert file.attrs["histotl_schema"] == 2


def test_the_digest_follows_its_definition(tmp_path: Path, write: Callable[..., Values]) -> None:
    values = write(tmp_path / "s.h5")
    found = hashlib.sha256()
    with h5py.File(tmp_path / "s.h5") as file:
        for name in ("features", "coords", "tissue_fraction"):
            data = file[name][()]
            found.update(f"{name} {data.dtype.str} {data.shape}\n".encode() + data.tobytes())
    found.update(f"views <f2 (3, {N}, {DIM})\n".encode())
    for view in values.views:
        found.update(hashlib.sha256(view.tobytes()).digest())
    found.update(f"quality <f4 ({N}, 2)\n".encode() + hashlib.sha256(values.quality.tobytes()).digest())
    assert open_embeddings(tmp_path / "s.h5").digest == found.hexdigest()


def test_files_without_extras_are_as_they_were(tmp_path: Path, write: Callable[..., Values]) -> None:
    values = write(tmp_path / "s.h5", extras=())
    found = open_embeddings(tmp_path / "s.h5")
    assert (found.view_spec, found.views, found.quality, found.extras) == (None, None, None, {})
    np.testing.assert_array_equal(found.read(dtype=np.float16), values.features)
    with pytest.raises(StoreError, match=r"view 0 does not exist in s.h5, which has 0") as caught:
        found.read(view=0)
    assert "--views" in caught.value.hint
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs["histotl_schema"] == 1
    assert check_file(tmp_path / "s.h5") == []


def test_one_kind_alone(tmp_path: Path, write: Callable[..., Values]) -> None:
    values = write(tmp_path / "v.h5", extras=(VIEWS,))
    _same(open_embeddings(tmp_path / "v.h5"), values)
    assert open_embeddings(tmp_path / "v.h5").quality is None
    values = write(tmp_path / "q.h5", extras=(QUALITY,))
    found = open_embeddings(tmp_path / "q.h5")
    assert found.views is None
    np.testing.assert_array_equal(found.quality.values, values.quality)
    with pytest.raises(StoreError, match="'blood' was not measured") as caught:
        found.quality.column("blood")
    assert "focus, pen" in caught.value.hint
    assert check_file(tmp_path / "v.h5") == check_file(tmp_path / "q.h5") == []


def test_a_file_is_current_only_with_the_extras_asked_for(
    tmp_path: Path, write: Callable[..., Values], make_meta: Meta
) -> None:
    path, identity = tmp_path / "s.h5", make_meta(N, DIM).identity
    write(path, extras=(VIEWS,))
    assert is_current(path, identity, "f00d")  # what it has besides does no harm
    assert is_current(path, identity, "f00d", [VIEWS])
    for other in ({"seed": 8}, {"count": 2}, {"augment": "d4"}):
        assert not is_current(path, identity, "f00d", [dataclasses.replace(VIEWS, **other)])
    assert not is_current(path, identity, "f00d", [VIEWS, QUALITY])
    write(path, extras=())
    assert not is_current(path, identity, "f00d", [VIEWS])


def test_what_is_missing_or_wrong_is_refused(tmp_path: Path, make_meta: Meta) -> None:
    meta, rows = dataclasses.replace(make_meta(4, DIM), extras=(QUALITY, VIEWS)), np.arange(4)
    with EmbeddingsWriter(tmp_path / "s.h5", n=4, dim=DIM, dtype="fp16", meta=meta) as made:
        made.put(rows, np.zeros((4, DIM), np.float32))
        for view in (0, 2):
            made.put_view(view, rows, np.zeros((4, DIM), np.float32))
        with pytest.raises(StoreError, match=r"4 of 4 rows missing .* of views 1 of s.h5"):
            made.seal()
        with pytest.raises(StoreError, match="views number 3, it has 3"):
            made.put_view(3, rows, np.zeros((4, DIM), np.float32))
        with pytest.raises(StoreError, match=r"row 0 of views 0 of s.h5 was given twice"):
            made.put_view(0, rows, np.zeros((4, DIM), np.float32))
        with pytest.raises(StoreError, match="features must be finite"):
            made.put_view(1, rows, np.full((4, DIM), np.nan, np.float32))
        made.put_view(1, rows, np.zeros((4, DIM), np.float32))
        with pytest.raises(StoreError, match=r"row 0, column 1 of quality 0 of s.h5 is inf; .* or NaN"):
            made.put_quality(rows, np.float32([[0, np.inf]] * 4))
        with pytest.raises(StoreError, match=r"shape \(4, 3\), \(4, 2\) wanted"):
            made.put_quality(rows, np.zeros((4, 3), np.float32))
        with pytest.raises(StoreError, match="of quality 0"):
            made.seal()
    assert list(tmp_path.iterdir()) == []
    with EmbeddingsWriter(tmp_path / "s.h5", n=4, dim=DIM, dtype="fp16", meta=make_meta(4, DIM)) as made:
        with pytest.raises(StoreError, match="not begun with views"):
            made.put_view(0, rows, np.zeros((4, DIM), np.float32))
        with pytest.raises(StoreError, match="not begun with quality"):
            made.put_quality(rows, np.zeros((4, 2), np.float32))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"seed": 2**53}, {"augment": ""}])
def test_specs_that_mean_nothing_are_refused(wrong: dict[str, object], make_meta: Meta) -> None:
    with pytest.raises(StoreError, match="cannot be stored"):
        dataclasses.replace(VIEWS, **wrong)
    for columns in ((), ("a", "a"), ("",)):
        with pytest.raises(StoreError, match="columns of quality"):
            QualitySpec(columns=columns, measures=("a",))
    with pytest.raises(StoreError, match="one of each kind"):
        dataclasses.replace(make_meta(4, DIM), extras=(VIEWS, VIEWS))


@pytest.mark.parametrize(("name", "key"), [("views", "augment"), ("views", "seed"), ("quality", "columns")])
def test_attributes_that_are_lost_or_lie_are_found(
    tmp_path: Path, write: Callable[..., Values], name: str, key: str
) -> None:
    path = tmp_path / "s.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        del file[name].attrs[key]
    with pytest.raises(CorruptFileError, match=f"attributes of '{name}'"):
        open_embeddings(path)
    write(path)
    with h5py.File(path, "r+") as file:
        if name == "views":
            file["views"].attrs["count"] = 4
        else:
            file["quality"].attrs["columns"] = '["focus"]'
    with pytest.raises(CorruptFileError, match=rf"'{name}' are float.. \(.*\), one block of"):
        open_embeddings(path)


def test_any_flipped_byte_of_an_extra_is_found(tmp_path: Path, write: Callable[..., Values]) -> None:
    path = tmp_path / "s.h5"
    write(path)
    data = path.read_bytes()
    with h5py.File(path) as file:
        places = {name: file[name].id.get_offset() for name in ("views", "quality")}
    for place in places.values():
        damaged = bytearray(data)
        damaged[place + 9] ^= 1
        path.write_bytes(damaged)
        assert check_file(path) == ["the seal differs: bytes of the file were changed after it was made"]
    path.write_bytes(data[: places["views"] + 10])
    assert check_file(path)


@pytest.mark.parametrize(
    ("name", "value", "told"), [("views", np.nan, "row 5 of view 1"), ("quality", np.inf, "row 5")]
)
def test_values_changed_by_another_tool_are_found(
    tmp_path: Path, write: Callable[..., Values], name: str, value: float, told: str
) -> None:
    path = tmp_path / "s.h5"
    write(path)
    path.write_bytes(path.read_bytes()[:-53])  # without its seal
    with h5py.File(path, "r+") as file:
        file[name][(1, 5) if name == "views" else 5] = value
    problems = " ".join(check_file(path))
    assert "digest differs" in problems
    assert told in problems


@pytest.mark.parametrize("small", [False, True])
def test_a_cohort_holds_the_extras_too(
    tmp_path: Path, write: Callable[..., Values], small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(zarr_writer, "_CHUNK_BYTES", 64)
        monkeypatch.setattr(zarr_writer, "_CHUNKS_A_SHARD", 3)
    written = {f"s{i}": write(tmp_path / f"s{i}.h5", seed=i, n=n) for i, n in enumerate((30, 0, 41))}
    write_cohort([tmp_path / f"{name}.h5" for name in written], tmp_path / "all.zarr")
    cohort = open_cohort(tmp_path / "all.zarr")
    assert cohort.extras == {"views": VIEWS, "quality": QUALITY}
    for name, values in written.items():
        for view in range(3):
            np.testing.assert_array_equal(cohort.read(name, dtype=np.float16, view=view), values.views[view])
        part = cohort.read(name, slice(1, None, 2), np.float16, view=1)
        np.testing.assert_array_equal(part, values.views[1, 1::2])
        np.testing.assert_array_equal(cohort.quality(name).values, values.quality)
        assert cohort.quality(name).spec == QUALITY
    with pytest.raises(StoreError, match="view 3 does not exist"):
        cohort.read("s0", view=3)
    for array, read in (("views", lambda c: c.read("s0", view=0)), ("quality", lambda c: c.quality("s0"))):
        shard = next(path for path in sorted((tmp_path / "all.zarr" / array / "c").rglob("*")) if path.is_file())
        shard.unlink()
        with pytest.raises(CorruptFileError, match="lost"):
            read(open_cohort(tmp_path / "all.zarr"))


def test_files_with_other_extras_do_not_share_a_cohort(tmp_path: Path, write: Callable[..., Values]) -> None:
    write(tmp_path / "a.h5")
    write(tmp_path / "b.h5", extras=(dataclasses.replace(VIEWS, seed=1), QUALITY))
    write(tmp_path / "c.h5", extras=())
    for other, told in (("b", "seed=1"), ("c", "None")):
        for order in ("a" + other, other + "a"):
            with pytest.raises(IdentityError, match=told):
                write_cohort([tmp_path / f"{name}.h5" for name in order], tmp_path / "all.zarr")
    write_cohort([tmp_path / "c.h5"], tmp_path / "all.zarr")
    assert open_cohort(tmp_path / "all.zarr").extras == {}
    assert open_cohort(tmp_path / "all.zarr").quality("c") is None
