"""Checks of the settings that tissue finders share."""

from __future__ import annotations

import math
from pathlib import Path

from histotl.core.errors import UsageError


def check_mpp(name: str, mpp: float) -> None:
    """Refuse a resolution that is none."""
    if not 0 < mpp < math.inf:
        raise UsageError(f"{name}: mpp is {mpp}", hint="give µm per pixel above 0, such as 8")


def check_widths(name: str, *, smooth_um: float, close_um: float) -> None:
    """Refuse negative widths."""
    if not (smooth_um >= 0 and close_um >= 0):
        fact = f"{name}: smooth_um is {smooth_um}, close_um is {close_um}"
        raise UsageError(fact, hint="give micrometres, 0 or more")


def check_path(name: str, path: str) -> None:
    """Refuse a path at which there is nothing."""
    if not Path(path).exists():
        raise UsageError(f"{name}: {path}: no such file or folder", hint="check the path")
