"""Where each file of a job lies: TRIDENT's folders and names."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

from histotl.core.atomic import TEMPORARY_SUFFIX
from histotl.core.errors import StoreError, UsageError
from histotl.core.values import BackboneCard, TileSpec, slug_of
from histotl.store.lock import STALE_S
from histotl.store.process import began_at, is_alive

_PREFIX = "features_"


def tiles_folder(out: Path, spec: TileSpec) -> Path:
    """Folder of everything made with a tile spec, such as ``OUT/20x_224px_0px_overlap``."""
    return out / spec.folder


def features_path(out: Path, spec: TileSpec, card: BackboneCard, slide_id: str) -> Path:
    """Embeddings file of a slide: ``OUT/<tiles>/features_<backbone>/<slide_id>.h5``."""
    return tiles_folder(out, spec) / f"{_PREFIX}{card.slug}" / f"{_safe(slide_id)}.h5"


def coords_path(out: Path, spec: TileSpec, slide_id: str) -> Path:
    """Coordinates file of a slide: ``OUT/<tiles>/patches/<slide_id>_patches.h5``."""
    return tiles_folder(out, spec) / "patches" / f"{_safe(slide_id)}_patches.h5"


def thumbnail_path(out: Path, slide_id: str) -> Path:
    """Small picture of a slide: ``OUT/thumbnails/<slide_id>.jpg``."""
    return out / "thumbnails" / f"{_safe(slide_id)}.jpg"


def contour_path(out: Path, slide_id: str) -> Path:
    """The same with tissue outline and grid: ``OUT/contours/<slide_id>.jpg``."""
    return out / "contours" / f"{_safe(slide_id)}.jpg"


def geojson_path(out: Path, slide_id: str) -> Path:
    """Tissue outline: ``OUT/contours_geojson/<slide_id>.geojson``."""
    return out / "contours_geojson" / f"{_safe(slide_id)}.geojson"


def patch_set_path(out: Path, card: BackboneCard, name: str) -> Path:
    """Embeddings file of a patch set: ``OUT/features_<backbone>/<name>.h5``."""
    return out / f"{_PREFIX}{card.slug}" / f"{_safe(name)}.h5"


def find_features(folder: Path, *, backbone: str | None = None) -> list[Path]:
    """Embeddings files under a folder, sorted by name.

    Args:
        folder: The job folder, one of its tiles folders, a ``features_…`` folder of ours or of TRIDENT, or one file.
        backbone: Name of the backbone (or the end of its folder's name) when there are several.

    Raises:
        StoreError: There are none.
        UsageError: There are several backbones or tilings and it is not clear which is meant; they are listed.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}", hint="give the output folder of histotl embed")
    direct = _files(folder)
    if direct:
        if backbone is not None and folder.name.startswith(_PREFIX) and not _is_of(folder, backbone):
            raise UsageError(f"{folder} is not of {backbone!r}", hint="give the job folder, or leave the backbone out")
        return direct
    groups = [
        found
        for found in sorted([*folder.glob(f"{_PREFIX}*"), *folder.glob(f"*/{_PREFIX}*")])
        if found.is_dir() and _files(found)
    ]
    names = ", ".join(str(found.relative_to(folder)) for found in groups)
    if backbone is not None:
        chosen = [found for found in groups if _is_of(found, backbone)]
        if groups and not chosen:
            cure = "name one of these backbones"
            raise UsageError(f"there are no features of {backbone!r} in {folder}, only {names}", hint=cure)
        groups = chosen
    if not groups:
        raise StoreError(f"there are no features files (.h5) in {folder}", hint="run histotl embed first")
    if len(groups) > 1:
        several = ", ".join(str(found.relative_to(folder)) for found in groups)
        cure = f"give one of them as the folder, such as {groups[0]}, or name the backbone"
        raise UsageError(f"{folder} holds features of several kinds: {several}", hint=cure)
    return _files(groups[0])


def embeddings_files(folder: Path) -> list[Path]:
    """Every embeddings file below a folder, of all backbones and tilings, sorted.

    Raises:
        StoreError: There are none.
    """
    inside = (path for path in folder.rglob("*.h5") if path.parent.name.startswith(_PREFIX))
    files = sorted({*_files(folder), *(path for path in inside if not path.name.startswith("."))})
    if not files:
        raise StoreError(f"there are no features files (.h5) in {folder}", hint="run histotl embed first")
    return files


def prepare_output(folder: Path) -> None:
    """Make an output folder, and find out before the work whether it can be written to.

    Raises:
        UsageError: It is a file, lies below one, or this user may not write there.
    """
    cure = "give a folder that you may write to as the output"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fact = f"{folder} is a file" if folder.is_file() else f"the folder {folder} cannot be made: {error.strerror}"
        raise UsageError(fact, hint=cure) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"no permission to write into {folder}", hint=cure)


def remove_stale_parts(folder: Path) -> list[Path]:
    """Remove what killed processes of this machine left behind under temporary names.

    Files of live processes, and of other machines, stay.

    Returns:
        What was removed.
    """
    removed = []
    mark = f".{socket.gethostname()}."
    for part in sorted(folder.rglob(f".*{TEMPORARY_SUFFIX}")):
        before, _, pid = part.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")
        if not pid.isdigit() or not f"{before}.".endswith(mark) or not _is_orphan(part, int(pid)):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        removed.append(part)
    return removed


def _is_orphan(part: Path, pid: int) -> bool:
    if not is_alive(pid):
        return True
    # Process ids come again (containers count from 1), so a file much older than its process is another's.
    began = began_at(pid)
    try:
        return began is not None and part.lstat().st_mtime < min(began, time.time()) - STALE_S
    except FileNotFoundError:
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.h5") if path.is_file() and not path.name.startswith("."))


def _is_of(folder: Path, backbone: str) -> bool:
    # A spec such as timm/x(weights='random') names its folder by what stands before the bracket.
    names = {backbone, backbone.partition("(")[0]}
    return folder.name.removeprefix(_PREFIX) in names | {slug_of(name) for name in names}


def _safe(name: str) -> str:
    """A slide id that is one file name and cannot lead out of its folder."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0") or len(name.encode()) > 180:
        raise UsageError(f"slide id {name!r} cannot be a file name", hint="use letters, digits, '.', '_' and '-'")
    return name
