"""From one number format to another, with numpy's rounding and without its slowness.

numpy turns float32 into float16 one number after the other; torch has the processor do eight or sixteen at once, about
eight times as fast, and rounds alike (to nearest, ties to even). Embedding and training have torch loaded anyway;
where it is not loaded, reading a file is no reason to load it, and numpy gives the same numbers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

_PAIRS = {(np.dtype(a), np.dtype(b)) for a, b in ((np.float32, np.float16), (np.float16, np.float32))}

_PIECE = 32_000
"""Numbers converted in one call. From 32,768 on torch wakes threads of its own, which then spin beside ours."""


def converted(values: Floats, dtype: npt.DTypeLike) -> Floats:
    """The values as C-contiguous numbers of a type; the same array where nothing has to be done.

    Args:
        values: Any shape.
        dtype: Number format wanted. What lies beyond its range becomes infinity, without a warning.
    """
    values = np.ascontiguousarray(values)
    if values.dtype == dtype:
        return values
    result = np.empty(values.shape, dtype)
    convert(values, result)
    return result


def convert(values: Floats, out: Floats) -> None:
    """Write values into an array of another number format.

    Args:
        values: C-contiguous.
        out: Of the same shape, C-contiguous.
    """
    if (values.dtype, out.dtype) in _PAIRS and "torch" in sys.modules:
        _convert_with_torch(values.reshape(-1), out.reshape(-1))
        return
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = values


def _convert_with_torch(values: Floats, out: Floats) -> None:
    import torch  # loaded already; the statement waits where another thread is still at it

    for start in range(0, len(values), _PIECE):
        part = values[start : start + _PIECE]
        # torch warns of arrays that must not be written to, and has no other way to take them.
        source = torch.from_numpy(part if part.flags.writeable else part.copy())
        torch.from_numpy(out[start : start + _PIECE]).copy_(source)
