"""What the writer hashes and converts on the way is what stands in the file."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.errors import StoreError
from histotl.store import block, digest
from histotl.store.convert import convert, converted
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, check_file, open_embeddings
from histotl.store.seal import crc_of_both

Meta = Callable[..., EmbeddingsMeta]
Write = Callable[..., np.ndarray]


def _digest_by_hand(path: Path) -> str:
    """The definition, without any code of the package."""
    found = hashlib.sha256()
    with h5py.File(path) as file:
        for name in ("features", "coords", "tissue_fraction", "items"):
            if name not in file:
                continue
            values = file[name][()]
            if name == "items":
                found.update(f"items text {values.shape}\n".encode())
                for text in values:
                    found.update(len(text).to_bytes(8, "little") + text)
            else:
                found.update(f"{name} {values.dtype.str} {values.shape}\n".encode() + values.tobytes())
    return found.hexdigest()


def _seal_holds(path: Path) -> bool:
    data, line = path.read_bytes()[:-53], path.read_bytes()[-53:]
    wanted = re.fullmatch(rb"\nhistotl-seal-1 size=(\d{16}) crc32=([0-9a-f]{8})\n", line)
    return wanted is not None and int(wanted[1]) == len(data) and int(wanted[2], 16) == zlib.crc32(data)


def _orders(n: int) -> dict[str, list[np.ndarray]]:
    places = np.arange(n)
    return {
        "one batch": [places],
        "in order": np.array_split(places, 9),
        "backwards": np.array_split(places, 9)[::-1],
        "a late batch": [np.array_split(places, 5)[k] for k in (0, 1, 3, 4, 2)],
        "mixed": np.array_split(np.random.default_rng(1).permutation(n), 7),
    }


@pytest.mark.parametrize("order", list(_orders(1)))
@pytest.mark.parametrize("piece_bytes", [1, 7 * 48 + 5, 2**20])
@pytest.mark.parametrize(("dtype", "patches"), [("fp16", False), ("fp32", False), ("fp16", True)])
def test_digest_and_seal_follow_their_definition_in_any_order_of_rows(
    tmp_path: Path,
    make_meta: Meta,
    order: str,
    dtype: str,
    patches: bool,
    piece_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(digest, "BLOCK_BYTES", 1000)  # so that reading back takes several turns
    path, n, dim = tmp_path / "s.h5", 100, 24
    values = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    meta = make_meta(n, dim, dtype=dtype, patches=patches)
    with EmbeddingsWriter(path, n=n, dim=dim, dtype=dtype, meta=meta) as made:
        for rows in _orders(n)[order]:
            made.put(rows, values[rows])
        made.seal()
    found = open_embeddings(path)
    np.testing.assert_array_equal(found.read(dtype=found.dtype), values.astype(found.dtype))
    assert found.digest == _digest_by_hand(path)
    assert _seal_holds(path)
    assert check_file(path) == []


def test_a_file_without_rows_is_sealed(tmp_path: Path, make_meta: Meta) -> None:
    path = tmp_path / "s.h5"
    with EmbeddingsWriter(path, n=0, dim=3, dtype="fp16", meta=make_meta(0, 3)) as made:
        made.seal()
    assert open_embeddings(path).digest == _digest_by_hand(path)
    assert _seal_holds(path)
    assert check_file(path) == []


@pytest.mark.parametrize("where", ["before the digest", "within the digest", "after the digest"])
def test_rows_that_were_interrupted_can_be_given_again(
    tmp_path: Path, make_meta: Meta, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    def too_late(self: digest.RunningDigest, row: int, taken: memoryview) -> None:
        add(self, row, taken)
        raise KeyboardInterrupt

    monkeypatch.setattr(block, "PIECE_BYTES", 10 * 4 * 2)  # ten rows go to the disk at a time
    path, add = tmp_path / "s.h5", digest.RunningDigest.add
    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    with EmbeddingsWriter(path, n=30, dim=4, dtype="fp16", meta=make_meta(30, 4)) as made:
        made.put(np.arange(10), values[:10])
        with monkeypatch.context() as patch:
            if where == "within the digest":
                patch.setattr(digest.zlib, "crc32", interrupted)
            else:
                patch.setattr(digest.RunningDigest, "add", too_late if where == "after the digest" else interrupted)
            with pytest.raises(KeyboardInterrupt):
                made.put(np.arange(10, 20), values[10:20])
        with pytest.raises(StoreError, match="20 of 30 rows missing"):
            made.seal()
        values[10:20] += 1  # what another run gives may differ
        made.put(np.arange(10, 20), values[10:20])
        made.put(np.arange(20, 30), values[20:])
        made.seal()
    assert open_embeddings(path).digest == _digest_by_hand(path)
    assert check_file(path) == []


def test_what_changes_a_file_behind_the_writer_is_found(tmp_path: Path, make_meta: Meta) -> None:
    path = tmp_path / "s.h5"
    with EmbeddingsWriter(path, n=600, dim=8, dtype="fp32", meta=make_meta(600, 8, dtype="fp32")) as made:
        made.put(np.arange(600), np.ones((600, 8), np.float32))
        (unfinished,) = tmp_path.iterdir()
        data = unfinished.read_bytes()
        place = data.index(np.ones(100, np.float32).tobytes())
        with unfinished.open("rb+") as file:
            file.seek(place)
            file.write(np.zeros(1, np.float32).tobytes())
        made.seal()
    assert check_file(path) == ["the seal differs: bytes of the file were changed after it was made"]


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 2**20 + 3])
def test_the_crc_of_two_pieces_is_that_of_the_whole(size: int) -> None:
    first, second = np.random.default_rng(size).bytes(99), np.random.default_rng(size + 1).bytes(size)
    assert crc_of_both(zlib.crc32(first), zlib.crc32(second), size) == zlib.crc32(first + second)
    assert crc_of_both(0, zlib.crc32(second), size) == zlib.crc32(second)


def _singles() -> np.ndarray:
    """float32 at, beside and between all halves, and such as no half is near."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    below, above = (np.nextafter(between, np.float32(side)) for side in (0, 1e9))
    odd = np.array([65519.9, 65520, 7e4, 1e30, np.inf, 1e-40, 2.0**-25, 2.0**-26], np.float32)
    all_of_them = np.concatenate([halves, between, below, above, odd])
    return np.concatenate([all_of_them, -all_of_them])


@pytest.mark.parametrize("loaded", [True, False])
def test_conversion_rounds_as_numpy_does(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if loaded:
        pytest.importorskip("torch")
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    singles = _singles()
    with np.errstate(over="ignore"):
        wanted = singles.astype(np.float16)
    np.testing.assert_array_equal(converted(singles, np.float16).view(np.uint16), wanted.view(np.uint16))
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 16)
    np.testing.assert_array_equal(converted(halves, np.float32), halves.astype(np.float32))  # NaN is NaN
    turned = converted(halves[::-1, ::-1], np.float32)
    np.testing.assert_array_equal(turned, halves[::-1, ::-1].astype(np.float32))


def test_conversion_takes_any_floats_and_leaves_them_alone() -> None:
    for source, target in (("f8", "f2"), ("f8", "f4"), (">f4", "f2"), ("f4", "f8"), (">f2", "f4")):
        values = np.linspace(-3, 3, 40_000).astype(source).reshape(-1, 4)
        values.flags.writeable = False
        out = np.empty(values.shape, target)
        convert(values, out)
        np.testing.assert_array_equal(out, values.astype(target))
    same = np.ones((2, 2), np.float16)
    assert converted(same, np.float16) is same
    fixed = np.linspace(0, 1, 70_000, dtype=np.float32)
    fixed.flags.writeable = False
    np.testing.assert_array_equal(converted(fixed, "f2"), fixed.astype("f2"))  # warnings are errors here


def test_reading_does_not_load_torch(tmp_path: Path, write_file: Write) -> None:
    write_file(tmp_path / "s.h5", 50, 8)
    code = """
import sys, numpy as np
from histotl.store.embeddings import check_file, open_embeddings
found = open_embeddings(sys.argv[1])
assert found.read().shape == (50, 8) and found.read(np.array([3])).shape == (1, 8)
assert check_file(found.path) == []
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "s.h5"], check=True, timeout=60)


def test_files_can_be_opened_in_many_threads(tmp_path: Path, write_file: Write) -> None:
    written = {path: write_file(path, 20, 8, seed=k) for k in range(8) if (path := tmp_path / f"{k}.h5")}

    def same(path: Path) -> bool:
        return bool(np.array_equal(open_embeddings(path).read(), written[path]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, list(written) * 10))
