"""One slide, one worker: a lock file with who holds it and a heartbeat.

Created by ``O_EXCL`` beside the file that it guards. A lock whose process is dead on this machine, or whose heartbeat
is old on another, is taken over; of any number of takers one wins. Nothing but a file system is needed, so workers on
many machines can share a folder.

How a take-over stays free of races: a stale lock has a random token in it. A taker first creates ``<lock>.<token>`` by
``O_EXCL`` (one can), sees that the lock still holds that token, and renames its file over the lock. A taker that comes
late finds another token and gives up. A taker that dies halfway leaves ``<lock>.<token>`` behind,
which is a lock like any other and is taken over in the same way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from histotl.core.atomic import temporary_name
from histotl.core.errors import LockedError, StoreError
from histotl.store.process import here, is_alive, own_start

_log = logging.getLogger(__name__)

HEARTBEAT_S = 30.0
"""Seconds between two signs of life."""

STALE_S = 600.0
"""A holder on another machine that was silent this long is taken for dead."""

UNREADABLE_S = 60.0
"""Age at which a lock file without readable text (its maker died between creating and writing it) is taken over."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock; the first three names are those of TRIDENT's lock files.

    Args:
        pid: Process id.
        hostname: Its machine.
        created_at: UTC time, ISO 8601.
        here: Host, boot and process-id namespace, so that a process id is only looked up where it means something.
        started: Start time of the process in the system's own count; empty where unknown.
        token: Random text that is different for every acquisition.
    """

    pid: int
    hostname: str
    created_at: str = ""
    here: str = ""
    started: str = ""
    token: str = ""


class SlideLock:
    """The lock ``<path>.lock`` of an output file.

    ``acquire`` says whether it worked; ``with SlideLock(path):`` raises `LockedError` instead. A daemon thread touches
    the lock every `heartbeat_s` while it is held. Not for use across ``fork``: a child does not own its parent's lock.

    Args:
        path: The output file (not the lock file).
        heartbeat_s: Seconds between two signs of life.
        stale_s: Silence after which a holder on another machine is taken for dead.
    """

    def __init__(self, path: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.path = path.with_name(f"{path.name}.lock")
        self._heartbeat_s = heartbeat_s
        self._stale_s = stale_s
        self._handle: int | None = None
        self._owner = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds the lock; False as well when it was taken over because we were silent too long."""
        return self._handle is not None and self._owner == os.getpid() and _same_file(self._handle, self.path)

    def acquire(self) -> bool:
        """Take the lock if it is free or its holder is gone.

        Returns:
            False when a live process holds it.

        Raises:
            StoreError: The folder cannot be written to.
        """
        if self.held:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = _claim(self.path, self._stale_s)
        except OSError as error:
            cure = "check that the output folder can be written to and has space"
            raise StoreError(f"cannot make the lock file {self.path}: {error}", hint=cure) from error
        if handle is None:
            return False
        self._handle, self._owner, self._stop = handle, os.getpid(), threading.Event()
        beat = (handle, self._stop, self._heartbeat_s)
        self._thread = threading.Thread(target=_beat, args=beat, name=f"lock {self.path.name}", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held, or no longer ours."""
        if self._handle is None or self._owner != os.getpid():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if _same_file(self._handle, self.path):
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None

    def holder(self) -> Holder | None:
        """Who holds the lock now; None when nobody does."""
        return _read(self.path)

    def __enter__(self) -> Self:
        if not self.acquire():
            who = self.holder()
            name = f"process {who.pid} on {who.hostname} since {who.created_at}" if who else "another process"
            cure = f"wait for it; if it is really gone, delete {self.path}"
            raise LockedError(f"{self.path.with_suffix('')} is being written by {name}", hint=cure)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _claim(file: Path, stale_s: float) -> int | None:
    """Open file handle of a lock that is now ours, or None when somebody else has it."""
    handle = _create(file)
    if handle is not None:
        return handle
    before = _read(file)
    if before is None or not _is_stale(file, before, stale_s):
        return None
    ticket = file.with_name(f"{file.name}.{before.token}")
    handle = _claim(ticket, stale_s)
    if handle is None:
        return None
    now = _read(file)
    if now is None or now.token != before.token:  # others were faster and are done already
        ticket.unlink(missing_ok=True)
        os.close(handle)
        return None
    try:
        ticket.replace(file)
    except FileNotFoundError:  # we slept so long that the take-over itself was taken over
        os.close(handle)
        return None
    _log.warning("took over %s from process %d on %s", file, before.pid, before.hostname)
    return handle


def _create(file: Path) -> int | None:
    me = Holder(
        pid=os.getpid(),
        hostname=socket.gethostname(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        here=here(),
        started=own_start(os.getpid()),
        token=secrets.token_hex(8),
    )
    # Written beside and linked, which is as exclusive as O_EXCL: a lock that has its name has its holder's name in it,
    # wherever the process is killed.
    draft = temporary_name(file.with_name(f"{file.name}.{threading.get_ident()}"))
    handle = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o666)
    try:
        os.write(handle, json.dumps(vars(me)).encode())
        if _link(draft, file) and _same_file(handle, file):
            return handle
    finally:
        draft.unlink(missing_ok=True)
    os.close(handle)
    return None


def _link(draft: Path, file: Path) -> bool:
    """Give a draft its second name, unless somebody has it."""
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # No hard links on this file system (exFAT, some network shares): the name first, exclusively, then the text.
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        except FileExistsError:
            return False
        draft.replace(file)
    return True


def _read(file: Path) -> Holder | None:
    try:
        text, touched = file.read_bytes(), file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    # Tokens become part of a file name, and a lock without one (TRIDENT's, or an empty file) still needs one.
    token = hashlib.sha256(text + str(touched).encode()).hexdigest()[:16]
    try:
        tree = json.loads(text)
        own = str(tree.get("token", ""))
        return Holder(
            pid=int(tree["pid"]),
            hostname=str(tree["hostname"]),
            created_at=str(tree.get("created_at", "")),
            here=str(tree.get("here", "")),
            started=str(tree.get("started", "")),
            token=own if own.isalnum() and len(own) <= 32 else token,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Holder(pid=0, hostname="", token=token)


def _is_stale(file: Path, holder: Holder, stale_s: float) -> bool:
    if holder.pid > 0 and (holder.here == here() or (not holder.here and holder.hostname == socket.gethostname())):
        return not is_alive(holder.pid, holder.started)
    try:
        age = _clock_of(file) - file.stat().st_mtime
    except FileNotFoundError:
        return False  # released this moment; the next call will get it
    return age > (stale_s if holder.hostname else min(stale_s, UNREADABLE_S))


def _clock_of(file: Path) -> float:
    """The time now by the clock that stamps files in this folder, which may be a file server's."""
    probe = temporary_name(file.with_name(f"{file.name}.{threading.get_ident()}"))
    try:
        probe.write_bytes(b"")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _beat(handle: int, stop: threading.Event, every_s: float) -> None:
    while not stop.wait(every_s):
        try:
            # By handle, not by name: after a take-over the name is somebody else's lock.
            os.utime(handle)
        except OSError as error:
            _log.warning("heartbeat of a lock failed: %s", error)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
