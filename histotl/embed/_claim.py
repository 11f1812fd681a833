"""Which files a process makes: those that are missing and that no other process is making."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TypeVar

from histotl.embed._interrupt import unbroken
from histotl.store.lock import SlideLock

State = Literal["ready", "current", "busy"]
"""To be worked on; nothing to do; being worked on by another process."""

_GRACE_S = 0.2
"""What a process needs at most to lock the files of a slide, one after the other, also on a slow disk."""

W = TypeVar("W")


def claim(
    wanted: Sequence[W], path: Callable[[W], Path], is_current: Callable[[W], bool], held: ExitStack
) -> tuple[State, tuple[W, ...]]:
    """Lock the files that are missing, for this process alone.

    Args:
        wanted: Keys of the files.
        path: The file of a key.
        is_current: Whether it need not be made.
        held: Gives the locks back.

    Returns:
        ``ready`` and the keys whose files are now ours to make; or ``current``, or ``busy`` when other processes hold
        all that is missing.
    """
    missing = []
    for key in wanted:
        if is_current(key):
            _remove_dead_lock(path(key))
        else:
            missing.append(key)
    if not missing:
        return "current", ()
    locked, waited = [], False
    for key in missing:
        if _take_lock(path(key), held):
            locked.append(key)
        elif not waited:
            # Whoever was faster here is about to lock the others, too: two processes need not both read the slide.
            time.sleep(_GRACE_S)
            waited = True
    if not locked:
        return "busy", ()
    # Another process may have finished it between the first look and the lock.
    ours = tuple(key for key in locked if not is_current(key))
    return ("ready" if ours else "current"), ours


def _take_lock(path: Path, held: ExitStack) -> bool:
    """Lock the file that is going to be written; ``held`` gives the lock back. False when another process has it."""
    lock = SlideLock(path)
    with unbroken():
        if not lock.acquire():
            return False
        held.callback(lock.release)
    return True


def _remove_dead_lock(path: Path) -> None:
    """Tidy up after a process that was killed between the renaming of its file and the release of its lock."""
    lock = SlideLock(path)
    if lock.path.exists() and lock.acquire():
        lock.release()
