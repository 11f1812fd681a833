"""Numbers that cannot be learnt from are refused where they are read."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from histotl.core.errors import CorruptFileError

F = TypeVar("F", bound=np.floating)


def check_finite(rows: npt.NDArray[F], where: str) -> npt.NDArray[F]:
    """The rows, if all are finite.

    Raises:
        CorruptFileError: Some are NaN or infinite.
    """
    # Squares sum to a finite number only where every number is finite, and to an infinite one hardly ever else: one
    # pass instead of a comparison of each. Half precision would overflow.
    if rows.dtype != np.float16 and rows.flags.c_contiguous:
        flat = rows.reshape(-1)
        with np.errstate(all="ignore"):
            if np.isfinite(np.dot(flat, flat)):
                return rows
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
        raise CorruptFileError(f"{where}: {bad} of {len(rows)} rows read are NaN or infinite", hint="embed it again")
    return rows
