"""Open handles that threads share without ever using one at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

H = TypeVar("H", bound="Closable")


class Closable(Protocol):
    """Something open."""

    def close(self) -> None:
        """Give it back."""


class Handles(Generic[H]):
    """Open handles on one file, lent to one thread at a time; a thread that finds none idle opens its own.

    Args:
        open_one: Opens another handle.
        first: A handle that is open already.
        keep_first: The first one belongs to somebody else: it is lent, but :meth:`close` leaves it open.
    """

    def __init__(self, open_one: Callable[[], H], first: H, *, keep_first: bool = False) -> None:
        self._open_one = open_one
        self._kept = first if keep_first else None
        self._idle: SimpleQueue[H] = SimpleQueue()
        self._idle.put(first)

    @contextmanager
    def borrow(self) -> Iterator[H]:
        """Lend a handle for the length of the block."""
        try:
            handle = self._idle.get_nowait()
        except Empty:
            handle = self._open_one()
        try:
            yield handle
        finally:
            self._idle.put(handle)

    def close(self) -> None:
        """Close all handles; none may be lent any more."""
        while True:
            try:
                handle = self._idle.get_nowait()
            except Empty:
                return
            if handle is not self._kept:
                handle.close()
