"""Attributes of HDF5 objects: texts and numbers, read and written.

Through HDF5's own handles: h5py's attribute objects cost more than all the rest of opening a file, or of making one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

AttributeValue = str | int | float | np.integer | np.floating | npt.NDArray[np.float64]
Owner: TypeAlias = h5py.h5g.GroupID | h5py.h5d.DatasetID
"""Handle of what has attributes: the ``id`` of a file, group or dataset."""


def text_attribute(owner: Owner, name: str) -> str | None:
    """Value of a text attribute; None when it is missing or not one text."""
    found = _attribute(owner, name)
    if found is None:
        return None
    kind = found.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID):
        return None
    # The library does not compare the array with what it writes into it: the sizes must be looked at here.
    if not kind.is_variable_str() and kind.get_strpad() == h5py.h5t.STR_NULLPAD:
        size = kind.get_size()
        if _bytes(found) != size:
            return None
        value = np.empty((), f"S{size}")
        found.read(value, mtype=kind)
    elif found.shape == ():
        value = np.empty((), kind.dtype)
        found.read(value)
    else:
        return None
    text: object = value[()]
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)


def number_attribute(owner: Owner, name: str) -> float | None:
    """Value of a numeric attribute; None when it is missing or not one number."""
    values = numbers_attribute(owner, name)
    return None if values is None or len(values) != 1 else float(values[0])


def numbers_attribute(owner: Owner, name: str) -> npt.NDArray[np.float64] | None:
    """Values of a numeric attribute as float64 (k,); None when it is missing, empty or not numbers."""
    found = _attribute(owner, name)
    if found is None:
        return None
    kind = found.get_type()
    if not isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID):
        return None
    values = np.empty(_bytes(found) // kind.get_size(), np.float64)
    if not values.size:
        return None
    found.read(values, mtype=h5py.h5t.NATIVE_DOUBLE)
    return values


def _attribute(owner: Owner, name: str) -> h5py.h5a.AttrID | None:
    key = name.encode()
    return h5py.h5a.open(owner, key) if h5py.h5a.exists(owner, key) else None


def _bytes(found: h5py.h5a.AttrID) -> int:
    try:
        return int(found.get_storage_size())
    except RuntimeError:  # how h5py takes the answer 0: an attribute without a value
        return 0


def set_attributes(owner: Owner, values: Mapping[str, AttributeValue]) -> None:
    """Write attributes: text as variable-length UTF-8, whole numbers as int64, others as float64."""
    for name, value in values.items():
        if isinstance(value, str):
            text = np.array(value, dtype=h5py.string_dtype("utf-8"))
            # What stands in memory is a Python object: h5py has a type of its own for that.
            _make(owner, name, _text_kind(None), ()).write(text)
        else:
            number = np.asarray(value, np.int64 if isinstance(value, int | np.integer) else np.float64)
            kind = h5py.h5t.NATIVE_INT64 if number.dtype == np.int64 else h5py.h5t.NATIVE_DOUBLE
            _make(owner, name, kind, number.shape).write(number, mtype=kind)


def set_own_attributes(owner: Owner, values: Mapping[str, AttributeValue]) -> None:
    """The same for the root, with text of fixed length: it lies in the header, under the header's checksum.

    Text of variable length lies in a heap that has none; TRIDENT's attributes are of that kind, ours need not be.
    """
    for name, value in values.items():
        if isinstance(value, str):
            data = value.encode() or b"\0"
            kind = _text_kind(len(data))
            _make(owner, name, kind, ()).write(np.array(data, f"S{len(data)}"), mtype=kind)
        else:
            set_attributes(owner, {name: value})


def _make(owner: Owner, name: str, kind: h5py.h5t.TypeID, shape: tuple[int, ...]) -> h5py.h5a.AttrID:
    """A new attribute, in place of an older one of that name."""
    key = name.encode()
    if h5py.h5a.exists(owner, key):
        h5py.h5a.delete(owner, key)
    return h5py.h5a.create(owner, key, kind, _space(shape))


# Making a type and a space costs as much as the attribute itself, and a file has fifty.
@lru_cache(maxsize=256)
def _text_kind(length: int | None) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(h5py.string_dtype("utf-8", length), logical=True)


@lru_cache(maxsize=16)
def _space(shape: tuple[int, ...]) -> h5py.h5s.SpaceID:
    return h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
