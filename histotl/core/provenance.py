"""Who made a file: versions, command, digests, time. Written into every file that histotl makes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

_LIBRARIES = (
    *("torch", "timm", "numpy", "h5py", "pillow", "tifffile", "imagecodecs"),
    *("openslide-python", "openslide-bin"),
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a file came from.

    Args:
        made_by: ``histotl <version>``.
        made_at: UTC time, ISO 8601.
        python: Version and platform.
        libraries: Versions of the libraries that can change pixels or features.
        specs: Canonical spec strings and configuration of the stages that led here.
        inputs: Digests of the files that it was made from.
    """

    made_by: str
    made_at: str
    python: str
    libraries: Mapping[str, str]
    specs: Mapping[str, object] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, *, specs: Mapping[str, object] | None = None, inputs: Mapping[str, str] | None = None) -> Provenance:
        """Provenance of a file that is being made now."""
        return cls(
            made_by=f"histotl {_version('histotl')}",
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            python=f"{platform.python_version()} {sys.platform} {platform.machine()}",
            libraries=_libraries(),
            specs=dict(specs or {}),
            inputs=dict(inputs or {}),
        )

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(vars(self), sort_keys=True, default=_plain)


def file_digest(path: Path, *, whole: bool = False) -> str:
    """SHA-256 (16 hex digits) that tells one file from another.

    Slides are gigabytes, so by default only the size and the first and last 256 KiB are read: these hold the header,
    the metadata, and parts of the tile index and of the pixels, which a re-scan or a re-export changes.

    Args:
        path: The file.
        whole: Read every byte.
    """
    size = path.stat().st_size
    digest, part = hashlib.sha256(str(size).encode()), 256 << 10
    with path.open("rb") as file:
        if whole or size <= 2 * part:
            while block := file.read(part):
                digest.update(block)
        else:
            digest.update(file.read(part))
            file.seek(-part, 2)
            digest.update(file.read(part))
    return digest.hexdigest()[:16]


def _plain(value: object) -> object:
    return vars(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


@cache
def _libraries() -> dict[str, str]:
    return {name: version for name in _LIBRARIES if (version := _version(name))}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
