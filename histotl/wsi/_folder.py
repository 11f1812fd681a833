"""The slides in a folder: which files are slides, and which belong to another one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from histotl.core.registry import available, create
from histotl.wsi._dicom import series_of
from histotl.wsi._opening import slide_name
from histotl.wsi.readers.base import Reader

_DICOM = (".dcm", ".dicom")

_OUTLINES, _PICTURES = "contours_geojson", ("contours", "thumbnails")
"""Folders that every output of histotl, and of TRIDENT, has: the pictures in it are no slides."""


def claimed(paths: Iterable[Path]) -> list[Path]:
    """Those files that some reader claims."""
    readers = [cast("Reader", create("reader", name)) for name in available("reader")]
    return [path for path in paths if any(reader.claims(path) for reader in readers)]


def find_slides(folder: Path) -> list[tuple[Path, str]]:
    """All slides below a folder, as (file, name), sorted by path.

    Left out: hidden files and folders, the data folder beside a MIRAX file, the pictures that a VMS file names, all
    but the largest file of a DICOM series (OpenSlide finds the others by itself), and the pictures of an earlier run
    whose output folder lies in this one.
    """
    found: list[tuple[Path, str]] = []
    others: list[Path] = []
    for where, folders, names in os.walk(folder):
        files = sorted(Path(where) / name for name in names if not name.startswith("."))
        pictures = _PICTURES if _OUTLINES in folders else ()
        miraxes = {path.stem for path in files if path.suffix.lower() == ".mrxs"}
        left_out = {*miraxes, *pictures}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in left_out)
        owned = {name for path in files if path.suffix.lower() in (".vms", ".vmu") for name in _named_by(path)}
        files = [path for path in files if path.name not in owned]
        dicom = [path for path in files if path.suffix.lower() in _DICOM]
        found += _series(dicom)
        others += [path for path in files if path.suffix.lower() not in _DICOM]
    found += [(path, slide_name(path)) for path in claimed(others)]
    return sorted(found)


def _named_by(index: Path) -> Iterator[str]:
    """File names that a VMS or VMU file gives: the values of its ``key=value`` lines."""
    try:
        lines = index.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return  # unreadable: it fails with its reason when it is opened
    for line in lines:
        _, equals, value = line.partition("=")
        if equals and value.strip():
            yield value.strip()


def _series(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """One file a series: the largest, which is the finest level. A folder with one series of many files names it."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        # A file whose series cannot be read stands for itself, so that opening it tells what is wrong.
        groups.setdefault(series_of(path) or str(path), []).append(path)
    for group in groups.values():
        largest = max(group, key=lambda path: (path.stat().st_size, path.name))
        alone = len(groups) == 1 and len(group) > 1
        yield largest, largest.parent.resolve().name if alone else largest.stem
