"""Is the process that wrote a lock or a temporary file still there?

A process id alone does not say: ids are reused, containers number their processes from 1 again, a killed worker stays
a zombie until its parent looks. So the machine, its boot and the process's start time are compared as well where the
system tells them (Linux).
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


@cache
def here() -> str:
    """Names what a process id is valid in: host, boot and process-id namespace."""
    boot = _text(_PROC / "sys/kernel/random/boot_id").strip()
    try:
        namespace = str((_PROC / "self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    return "/".join((socket.gethostname(), boot, namespace))


def start_time(pid: int) -> str:
    """Start of a running process in clock ticks since boot; empty when it is gone, or on systems that do not say."""
    state, ticks = _state(pid)
    return "" if state in "ZX" else ticks


@cache
def own_start(pid: int) -> str:
    """The same of the calling process, which is asked about for every lock; ``pid`` tells a fork from its parent."""
    return start_time(pid)


def is_alive(pid: int, started: str = "") -> bool:
    """Whether process ``pid`` of this machine runs, and is the one that began at ``started``.

    Args:
        pid: Process id, valid :func:`here`.
        started: What :func:`start_time` gave for it when it was known to run; empty to compare the id alone.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs, under another user
    state, ticks = _state(pid)
    if state and state in "ZX":
        return False
    return not (started and ticks and started != ticks)


def began_at(pid: int) -> float | None:
    """Wall-clock time (seconds since 1970) at which a process began; None where the system does not say."""
    ticks = start_time(pid)
    boot = next((line.split()[1] for line in _text(_PROC / "stat").splitlines() if line.startswith("btime ")), "")
    return int(boot) + int(ticks) / os.sysconf("SC_CLK_TCK") if ticks and boot else None


def _state(pid: int) -> tuple[str, str]:
    """State letter and start time of a process, proc_pid_stat(5) fields 3 and 22; empty when unknown."""
    # The second field is the program's name in brackets and may hold anything, brackets too.
    fields = _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
