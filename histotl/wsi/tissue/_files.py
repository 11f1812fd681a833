"""The file that says where the tissue of a slide is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from histotl.core.errors import OutlineError
from histotl.core.values import SlideInfo


def file_of(path: Path, info: SlideInfo, suffixes: Sequence[str]) -> Path:
    """The file itself, or that of a slide in a folder.

    Raises:
        OutlineError: The folder has none for the slide.
    """
    if not path.is_dir():
        return path
    for suffix in suffixes:
        if (found := path / f"{info.slide_id}{suffix}").is_file():
            return found
    fact = f"{info.slide_id}: {path} has no {' or '.join(info.slide_id + suffix for suffix in suffixes)}"
    raise OutlineError(fact, hint="add it, or leave this slide out")
