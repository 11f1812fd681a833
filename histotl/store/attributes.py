"""Attributes of HDF5 objects: texts and numbers, read and written.

Through HDF5's own handles: h5py's attribute objects cost more than all the rest of opening a file, or of making one.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            _set(owner, name, np.array(value, dtype=h5py.string_dtype("utf-8")))
        else:
            _set(owner, name, np.asarray(value, np.int64 if isinstance(value, int | np.integer) else np.float64))


def set_own_attributes(owner: Owner, values: Mapping[str, AttributeValue]) -> None:
    """The same for the root, with text of fixed length: it lies in the header, under the header's checksum.

    Text of variable length lies in a heap that has none; TRIDENT's attributes are of that kind, ours need not be.
    """
    for name, value in values.items():
        if isinstance(value, str):
            data = value.encode()
            _set(owner, name, np.array(data, dtype=h5py.string_dtype("utf-8", max(1, len(data)))))
        else:
            set_attributes(owner, {name: value})


def _set(owner: Owner, name: str, value: npt.NDArray[np.generic]) -> None:
    key = name.encode()
    if h5py.h5a.exists(owner, key):
        h5py.h5a.delete(owner, key)
    kind = h5py.h5t.py_create(value.dtype, logical=True)
    space = h5py.h5s.create(h5py.h5s.SCALAR) if value.ndim == 0 else h5py.h5s.create_simple(value.shape)
    h5py.h5a.create(owner, key, kind, space).write(value)
