"""The one thread that writes features into files, so that the device never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from histotl.embed._compute import Features
from histotl.embed._interrupt import unbroken
from histotl.embed.telemetry import Clock
from histotl.store.embeddings import EmbeddingsWriter

MOST_WAITING = 64
"""Batches of features that may wait for the disk before the device has to."""


class Filing:
    """Writes in the order in which it is told to; every answer is a future.

    Args:
        clock: Gets the seconds of ``write``.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="histotl-writer")
        self._waiting: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with unbroken():
            self._pool.shutdown(wait=True, cancel_futures=True)

    def put(
        self,
        writer: EmbeddingsWriter,
        rows: npt.NDArray[np.int64],
        features: Features,
        at: int = 0,
        *,
        view: int | None = None,
    ) -> Future[None]:
        """File features, which begin at place ``at`` of their batch, as some rows: of a view where one is named."""

        def write() -> None:
            values = features.numpy()[at : at + len(rows)]
            with self._clock.stage("write"):
                if view is None:
                    writer.put(rows, values)
                else:
                    writer.put_view(view, rows, values)

        self._waiting = [future for future in self._waiting if not future.done()]
        if len(self._waiting) >= MOST_WAITING:
            # An error is the business of who asked for that write: it has the same future.
            self._waiting[0].exception()
        return self._submit(write)

    def put_quality(
        self, writer: EmbeddingsWriter, rows: npt.NDArray[np.int64], figures: Features, at: int = 0
    ) -> Future[None]:
        """File quality figures, which begin at place ``at`` of their batch, of some rows."""

        def write() -> None:
            values = figures.numpy()[at : at + len(rows)]
            with self._clock.stage("write"):
                writer.put_quality(rows, values)

        return self._submit(write)

    def seal(self, writers: Sequence[EmbeddingsWriter]) -> Future[None]:
        """Give files their final names, after all that was put before."""

        def seal() -> None:
            with self._clock.stage("write"):
                for writer in writers:
                    writer.seal()

        return self._submit(seal)

    def drain(self) -> Future[None]:
        """Done when nothing that was asked for before is being written any more."""
        return self._submit(lambda: None)

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        future = self._pool.submit(work)
        self._waiting.append(future)
        return future
