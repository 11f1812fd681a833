"""Ctrl-C at a moment when it would leave something half done is kept until that is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def unbroken() -> Iterator[None]:
    """Hold SIGINT back while the block runs; it takes effect on leaving.

    For the few short steps that take or give back something on disk (a temporary file, a lock): between the taking and
    the noting down there must be no way out. Does nothing in threads, which Python never interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: kept.append((number, frame)))
    try:
        yield
    finally:
        # None: a handler that was not installed from Python, which Python cannot put back.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if kept and callable(before):
            before(*kept[-1])
