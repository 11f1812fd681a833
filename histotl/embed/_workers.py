"""Threads that compute batches side by side, each on one core; what they give comes back in order.

A forward pass on one thread gives the same bits on every machine with the same kernels, however many cores it has, and
several of them use the cores better than one that is cut up among all: small layers are not worth cutting.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from histotl.embed._interrupt import unbroken
from histotl.embed.device import Forwards
from histotl.embed.telemetry import WAITING, Clock

Token = TypeVar("Token")
Made = TypeVar("Made")
Made_co = TypeVar("Made_co", covariant=True)

_mine = threading.local()


class _Answer(Protocol[Made_co]):
    """What a batch will have come to."""

    def done(self) -> bool:
        """Whether nobody has to wait for it."""

    def result(self) -> Made_co:
        """Wait for it; raises what computing raised."""


@dataclass(frozen=True)
class _Here(Generic[Made]):
    """Work that whoever asks for the answer does."""

    result: Callable[[], Made]

    def done(self) -> bool:
        """Nobody else will do it."""
        return True


class _Stopped(BaseException):
    """The run is over; an error of no slide."""


class Workers(Generic[Token, Made]):
    """Computes batches in threads of its own, or, where one forward pass has it all, in the thread that asks.

    Args:
        forwards: How many side by side, and on how many threads of torch each.
    """

    def __init__(self, forwards: Forwards) -> None:
        self.count = forwards.count
        self._threads = forwards.threads
        self._on_way: deque[tuple[Token, _Answer[Made]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "histotl-compute", initializer=self._enter_thread)
        self._lock = threading.Lock()
        self._running, self._idle_s, self._since = 0, 0.0, time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        with unbroken():
            # A batch of a large network takes a minute: after Ctrl-C nobody wants to wait for its last layer.
            handle = register_module_forward_pre_hook(self._stop)
            try:
                self._pool.shutdown(wait=True, cancel_futures=True)
            finally:
                handle.remove()

    @property
    def are_beside(self) -> bool:
        """Whether batches are computed in other threads than the one that asks."""
        return self._pool is not None

    @property
    def most_on_way(self) -> int:
        """Batches that may be on their way when the next is asked for.

        One more than are computed at once, so that no thread waits for the one that hands them out.
        """
        return self.count + 1 if self.are_beside else 0

    def are_busy(self) -> bool:
        """Whether every thread has something to do."""
        return self.are_beside and sum(not answer.done() for _, answer in self._on_way) >= self.count

    def begin(self, token: Token, work: Callable[[], Made]) -> None:
        """Have a batch computed; it comes back with ``token``."""
        if self._pool is None:
            self._on_way.append((token, _Here(work)))
            return
        with unbroken():
            self._on_way.append((token, self._pool.submit(self._run, work)))

    def finished(self, *, wait_for_all: bool = False) -> Iterator[tuple[Token, Callable[[], Made]]]:
        """Batches that are through, in the order in which they were begun, and what gives their results or raises.

        Args:
            wait_for_all: Wait for all that were begun; otherwise only while more than :attr:`most_on_way` are on their
                way.
        """
        most = 0 if wait_for_all else self.most_on_way
        while self._on_way and (len(self._on_way) > most or self._on_way[0][1].done()):
            token, answer = self._on_way.popleft()
            if isinstance(answer, Future):
                answer.exception()  # waits: its tiles may not be given away before
            yield token, answer.result

    @contextmanager
    def waiting(self, clock: Clock) -> Iterator[None]:
        """Count the time that threads have nothing to do while the block waits for tiles, summed over them."""
        before = self._idle()
        try:
            yield
        finally:
            clock.add(WAITING, self._idle() - before)

    def _run(self, work: Callable[[], Made]) -> Made:
        self._idle(more=1)
        try:
            return work()
        finally:
            self._idle(more=-1)

    def _idle(self, more: int = 0) -> float:
        """Idle seconds of all threads until now; from now on, ``more`` of them are computing."""
        with self._lock:
            now = time.perf_counter()
            self._idle_s += (self.count - self._running) * (now - self._since)
            self._since, self._running = now, self._running + more
            return self._idle_s

    def _enter_thread(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps this number for every thread that calls it
        _mine.workers = self

    def _stop(self, module: torch.nn.Module, inputs: Any) -> None:
        """Leave the network before its next layer; called at every layer of every thread of the process."""
        del module, inputs
        if getattr(_mine, "workers", None) is self:
            raise _Stopped
