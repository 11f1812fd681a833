"""One way to write a file: beside it under a temporary name, flushed to disk, renamed.

A file with its final name is whole or is not there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".part"


def temporary_name(path: Path) -> Path:
    """Name in the same folder that no other live process writes to: host and process id are in it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{TEMPORARY_SUFFIX}")


@contextmanager
def atomic_path(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving without error it becomes ``path``, else it is removed.

    Folders are made as needed.

    Args:
        path: Final name.
        flush: Have the file and its folder on disk before and after the rename, so that a power cut leaves the old file
            or the new one. Only what nothing depends on, such as a picture, can do without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if flush:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if flush:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, flush: bool = True) -> None:
    """Write UTF-8 text atomically; see :func:`atomic_path`."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write bytes atomically; see :func:`atomic_path`."""
    with atomic_path(path, flush=flush) as temporary:
        temporary.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
