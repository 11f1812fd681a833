"""A labelled set of patch images: which files, and their pixels."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from histotl.core.errors import NotBrightfieldError, SlideError, SlideReadError, TableError, UsageError
from histotl.core.provenance import file_digest
from histotl.embed.summary import Failure
from histotl.embed.telemetry import Clock

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""Files that are taken from a folder; a manifest may name any file that Pillow reads."""

_COLUMN = "path"
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "YCbCr", "CMYK", "LAB"})
# What Pillow raises for damaged files: a broken PNG is a SyntaxError, a decompression bomb a class of its own.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One image of a set.

    Args:
        text: The path as the manifest has it; for a folder, relative to it with forward slashes.
        path: The file.
    """

    text: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class PatchFacts:
    """What the header and the bytes of an image say.

    Args:
        shape: (height, width) in pixels.
        digest: Of the file.
    """

    shape: tuple[int, int]
    digest: str


def list_patches(manifest: Path) -> list[Patch]:
    """Images of a CSV with a column ``path`` (relative to the CSV's folder), or of a folder and its sub-folders.

    Returns:
        In the order of the CSV; those of a folder sorted by path.

    Raises:
        UsageError: Neither a folder nor a CSV.
        TableError: No column ``path``, an empty one, no rows, or one file twice.
    """
    if manifest.is_dir():
        files = sorted(p for p in manifest.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        patches = [Patch(text=path.relative_to(manifest).as_posix(), path=path) for path in files]
        patches = [patch for patch in patches if not any(part.startswith(".") for part in Path(patch.text).parts)]
    elif manifest.is_file() and manifest.suffix.lower() == ".csv":
        patches = [Patch(text=text, path=manifest.parent / text) for text in _column(manifest)]
    else:
        cure = f"give a CSV with a column '{_COLUMN}', or a folder of images"
        raise UsageError(f"{manifest} is neither a CSV nor a folder", hint=cure)
    if not patches:
        raise TableError(f"{manifest} holds no patches", hint=f"images are: {', '.join(sorted(IMAGE_SUFFIXES))}")
    _refuse_repeats(manifest, patches)
    return patches


def set_name(manifest: Path) -> str:
    """Name of a set in outputs: its CSV without the ending, or its folder."""
    where = manifest.resolve()
    return where.name if where.is_dir() else where.stem


def inspect_patch(patch: Patch) -> PatchFacts:
    """Size of an image and digest of its file.

    Raises:
        SlideReadError: Missing, or not an image that can be used.
        NotBrightfieldError: Not a colour image.
    """
    if not patch.path.is_file():
        raise SlideReadError(f"{patch.path} is not there", hint=f"correct or remove the row {patch.text!r}")
    try:
        digest = file_digest(patch.path)
        with Image.open(patch.path) as image:
            width, height = image.size
            mode, frames = image.mode, int(getattr(image, "n_frames", 1))
    except _PILLOW_ERRORS as error:
        raise _unreadable(patch, error) from error
    if mode not in _COLOUR_MODES:
        raise NotBrightfieldError(
            f"{patch.path} is no 8-bit colour image (mode {mode})", hint="convert it to RGB, or remove its row"
        )
    if frames > 1:
        fact = f"{patch.path} holds {frames} images"
        raise SlideReadError(
            fact, hint="save the one that is meant as a file of its own; slides are embedded without --patches"
        )
    return PatchFacts(shape=(height, width), digest=digest)


def read_patch(patch: Patch) -> npt.NDArray[np.uint8]:
    """Pixels, uint8 RGB (h, w, 3); transparency is composited on white.

    Raises:
        SlideReadError: The image cannot be decoded.
    """
    try:
        with Image.open(patch.path) as image:
            if image.mode == "RGBA" or "transparency" in image.info:
                flat = Image.new("RGBA", image.size, (255, 255, 255, 255))
                flat.alpha_composite(image.convert("RGBA"))
                return np.asarray(flat.convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise _unreadable(patch, error) from error


def _unreadable(patch: Patch, error: BaseException) -> SlideReadError:
    return SlideReadError(
        f"{patch.path} cannot be read: {error}", hint=f"replace the file, or remove the row {patch.text!r}"
    )


def _column(manifest: Path) -> list[str]:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        try:
            first = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter=max(",;\t", key=first.count), strict=True)
            names = list(rows.fieldnames or [])
            if _COLUMN not in names:
                fact = f"{manifest} has no column '{_COLUMN}', only: {', '.join(names) or 'nothing'}"
                raise TableError(fact, hint=f"name the column of the image files '{_COLUMN}'")
            texts = [row[_COLUMN] or "" for row in rows]
        except (csv.Error, UnicodeDecodeError) as error:
            raise TableError(
                f"{manifest} is no readable CSV: {error}", hint="save it as comma-separated UTF-8"
            ) from error
    for number, text in enumerate(texts, start=2):
        if not text.strip():
            raise TableError(
                f"{manifest} line {number} has an empty '{_COLUMN}'", hint="fill it in, or remove the line"
            )
    return texts


def _refuse_repeats(manifest: Path, patches: list[Patch]) -> None:
    seen: dict[Path, str] = {}
    for patch in patches:
        where = patch.path.resolve()
        if where in seen:
            fact = f"{manifest} names one file twice: {seen[where]!r} and {patch.text!r}"
            raise TableError(fact, hint="keep one of the two rows")
        seen[where] = patch.text


@dataclass(frozen=True, kw_only=True)
class SameSize:
    """Images of one size: they can share a batch.

    Args:
        tile_shape: Their height and width.
        rows: Their places in the set, int64.
        patches: The set.
        failed: Gets those that cannot be read.
        clock: Gets the seconds of ``decode``.
    """

    tile_shape: tuple[int, int]
    rows: npt.NDArray[np.int64]
    patches: Sequence[Patch]
    failed: list[Failure]
    clock: Clock

    @property
    def n_tiles(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def group(self) -> tuple[int, int]:
        """Those of one size share batches."""
        return self.tile_shape

    def read(self, rows: slice, out: npt.NDArray[np.uint8]) -> None:
        """Decode some of them; from several threads at once."""
        for position, row in enumerate(self.rows[rows].tolist()):
            patch = self.patches[row]
            try:
                with self.clock.stage("decode"):
                    out[position] = read_patch(patch)
            except SlideError as error:
                # What stays in its place is never filed: with a failure on the list no file is sealed.
                self.failed.append(Failure.of(patch.text, patch.path, error))

    def close(self) -> None:
        """Nothing is held."""


def inspect_all(patches: Sequence[Patch], workers: int) -> tuple[list[PatchFacts], list[Failure]]:
    """Facts of all images that can be opened, in order, and the others."""

    def inspect(patch: Patch) -> PatchFacts | Failure:
        try:
            return inspect_patch(patch)
        except SlideError as error:
            return Failure.of(patch.text, patch.path, error)

    with ThreadPoolExecutor(workers, thread_name_prefix="histotl-reader") as pool:
        found = list(pool.map(inspect, patches))
    facts = [result for result in found if isinstance(result, PatchFacts)]
    return facts, [result for result in found if isinstance(result, Failure)]


def digest_of(patches: Sequence[Patch], facts: Sequence[PatchFacts]) -> str:
    """Digest of names and bytes of all images; facts are fewer than patches only when nothing will be filed."""
    digest = hashlib.sha256()
    for patch, fact in zip(patches, facts, strict=False):
        digest.update(f"{patch.text}\0{fact.digest}\n".encode())
    return digest.hexdigest()[:16]
