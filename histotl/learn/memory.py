"""How much of the machine's memory features may take."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.5
"""Part of the free memory that features may take when nothing else is asked for."""

LEAST = 1 << 30
"""Bytes that they may take on any machine."""


def budget_bytes(memory_gb: float) -> int:
    """Bytes that features may take.

    Args:
        memory_gb: What was asked for, in units of 2**30 bytes; 0 for half of what is free now, at least 1.
    """
    return int(memory_gb * 2**30) if memory_gb else max(LEAST, int(SHARE * free_bytes()))


def free_bytes() -> int:
    """Memory that this process may still take: what the machine has free, within the limit of its control group."""
    limits = [_machine()]
    for limit, used in _GROUPS:
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            limits.append(max(0, most - now))
    return min(limits)


_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of the control group that a container sees as its own, in both versions of the interface."""


def _machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        # Not Linux: only the whole memory is known by a common interface.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or no limit is set."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
