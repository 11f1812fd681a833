"""Output folders: what cannot be written to is said before hours of work, not after."""

from __future__ import annotations

import os
from pathlib import Path

from histotl.core.errors import UsageError


def check_folder(folder: Path) -> None:
    """Raise if a folder cannot be made or written to; nothing is made.

    Raises:
        UsageError: It, or a part of its path, is a file, or is not writable.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UsageError(f"{folder} cannot be a folder: {place} is a file", hint="give another output folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written: no permission in {place}", hint="give another output folder")
