"""Attributes of strangers' files may be of any type and shape."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from histotl.core.errors import StoreError
from histotl.store.attributes import number_attribute, numbers_attribute, set_own_attributes, text_attribute
from histotl.store.embeddings import open_embeddings


@pytest.fixture
def file(tmp_path: Path) -> h5py.File:
    with h5py.File(tmp_path / "a.h5", "w") as made:
        yield made


def _padded(file: h5py.File, name: str, padding: int) -> None:
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(6)
    kind.set_strpad(padding)
    made = h5py.h5a.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    made.write(np.array(b"abc   " if padding == h5py.h5t.STR_SPACEPAD else b"abc\0\0\0", "S6"), mtype=kind)


def test_texts_of_every_kind_are_read(file: h5py.File) -> None:
    set_own_attributes(file.id, {"ours": "größe", "empty": ""})
    file.attrs["theirs"] = "größe"
    file.attrs["bytes"] = np.bytes_(b"abc")
    file.attrs.create("ascii", b"abc", dtype=h5py.string_dtype("ascii", 10))
    _padded(file, "ended", h5py.h5t.STR_NULLTERM)
    _padded(file, "spaced", h5py.h5t.STR_SPACEPAD)
    assert text_attribute(file.id, "ours") == text_attribute(file.id, "theirs") == "größe"
    assert text_attribute(file.id, "empty") == ""
    for name in ("bytes", "ascii", "ended", "spaced"):
        assert text_attribute(file.id, name) == "abc", name
    file.attrs.create("broken", b"\xff\xfe", dtype=h5py.string_dtype("utf-8", 2))
    assert text_attribute(file.id, "broken") == "\ufffd\ufffd"


def test_what_is_not_one_text_is_none(file: h5py.File) -> None:
    file.attrs["number"] = 3
    file.attrs["several"] = np.array([b"abc", b"def"])
    file.attrs["many"] = ["abc", "def"]
    file.attrs["nothing"] = h5py.Empty("S3")
    for name in ("missing", "number", "several", "many", "nothing"):
        assert text_attribute(file.id, name) is None, name


def test_numbers_of_every_kind_are_read(file: h5py.File) -> None:
    values = {"i1": np.int8(-3), "u8": np.uint64(2**40), "f2": np.float16(0.5), ">f8": np.array(0.1, ">f8")}
    file.attrs.update(values)
    for name, value in values.items():
        assert number_attribute(file.id, name) == float(value), name
    file.attrs["two"] = np.array([1, 2])
    file.attrs["square"] = np.arange(4.0).reshape(2, 2)
    assert number_attribute(file.id, "two") is None
    np.testing.assert_array_equal(numbers_attribute(file.id, "two"), [1, 2])
    np.testing.assert_array_equal(numbers_attribute(file.id, "square"), [0, 1, 2, 3])


def test_what_is_no_number_is_none(file: h5py.File) -> None:
    file.attrs["text"] = "3"
    file.attrs["flag"] = True
    file.attrs["complex"] = 1j
    file.attrs["nothing"] = h5py.Empty("f4")
    file.attrs["none"] = np.zeros(0)
    for name in ("missing", "text", "flag", "complex", "nothing", "none"):
        assert numbers_attribute(file.id, name) is None, name


@pytest.mark.parametrize("version", ["1", True, np.array([1, 2])])
def test_a_schema_version_that_is_no_number_is_refused(tmp_path: Path, version: object) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as made:
        made["features"] = np.zeros((4, 3), np.float32)
        made.attrs["histotl_schema"] = version
    with pytest.raises(StoreError, match="schema version None"):
        open_embeddings(tmp_path / "s.h5")
