"""Batches through the networks of one device. On a GPU nothing waits: copies and kernels are only queued here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from histotl.backbones._network import NetworkEmbedder
from histotl.embed._models import Model
from histotl.embed.telemetry import Clock, Telemetry, peak_rss_mb

IN_FLIGHT = 2
"""Batches queued on a GPU: one that it works on and one that is next. More would only take memory."""

_MARKS = ("copy", "transform", "forward")


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of one model on their way to the host.

    Args:
        host: float32 (b, dim) on the CPU; right once ``ready`` has happened.
        ready: The end of its copy; None on a CPU.
    """

    host: torch.Tensor
    ready: torch.cuda.Event | None = None

    def numpy(self) -> npt.NDArray[np.float32]:
        """Wait for the copy, in whichever thread wants the numbers."""
        if self.ready is not None:
            self.ready.synchronize()
        array: npt.NDArray[np.float32] = self.host.numpy()
        return array


class Compute:
    """Runs batches on one device and measures how busy it is.

    Args:
        device: A CPU, or one GPU.
        clock: Gets the seconds of ``copy``, ``transform`` and ``forward``.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self._clock = clock
        self._cuda = device.type == "cuda"
        # Copies have a stream of their own, so that the next batch travels while this one is computed.
        self._copies = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._queued: deque[tuple[list[torch.cuda.Event], Callable[[], None]]] = deque()

    def run(
        self,
        tiles: torch.Tensor,
        transform: Callable[[torch.Tensor], torch.Tensor],
        models: Sequence[Model],
        release: Callable[[], None],
    ) -> list[Features]:
        """One batch through all models.

        Args:
            tiles: uint8 (b, h, w, 3) on the CPU.
            transform: Normalises the stain of tiles on the device.
            models: All get the same tiles.
            release: Called when ``tiles`` may be overwritten.

        Returns:
            For every model, in order.
        """
        if not self._cuda:
            try:
                return self._on_cpu(tiles, transform, models)
            finally:
                release()
        while len(self._queued) >= IN_FLIGHT:
            self._settle()
        marks = [_event(timing=True) for _ in range(len(_MARKS) + 2)]
        try:
            return self._on_gpu(tiles, transform, models, marks)
        finally:
            self._queued.append((marks, release))

    def finish(self) -> None:
        """Wait for all that is queued."""
        while self._queued:
            self._settle()

    def _on_cpu(
        self, tiles: torch.Tensor, transform: Callable[[torch.Tensor], torch.Tensor], models: Sequence[Model]
    ) -> list[Features]:
        with torch.inference_mode():
            with self._clock.stage("transform"):
                normal = transform(tiles)
            with self._clock.stage("forward"):
                return [Features(host=model(normal)) for model in models]

    def _on_gpu(
        self,
        tiles: torch.Tensor,
        transform: Callable[[torch.Tensor], torch.Tensor],
        models: Sequence[Model],
        marks: list[torch.cuda.Event],
    ) -> list[Features]:
        main = torch.cuda.current_stream(self.device)
        with torch.inference_mode():
            with torch.cuda.stream(self._copies):
                marks[0].record()
                on_device = tiles.to(self.device, non_blocking=True)
                marks[1].record()
            main.wait_event(marks[1])
            # The memory belongs to the copies' stream: it must not be given away while the main one reads it.
            on_device.record_stream(main)
            marks[2].record(main)
            normal = transform(on_device)
            marks[3].record(main)
            found = [model(normal) for model in models]
            marks[4].record(main)
            return [self._to_host(features, main) for features in found]

    def _to_host(self, features: torch.Tensor, stream: torch.cuda.Stream) -> Features:
        host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        host.copy_(features, non_blocking=True)
        ready = _event()
        ready.record(stream)
        return Features(host=host, ready=ready)

    def _settle(self) -> None:
        """Wait for the oldest batch; count its time and give its buffer back."""
        marks, release = self._queued.popleft()
        for mark in marks:
            mark.synchronize()
        for name, (start, stop) in zip(_MARKS, ((0, 1), (2, 3), (3, 4)), strict=True):
            self._clock.add(name, _elapsed_s(marks[start], marks[stop]))
        release()


def measured(
    clock: Clock, models: Sequence[Model], device: torch.device, *, wall_s: float, n_tiles: int, **facts: Any
) -> Telemetry:
    """The telemetry of a run from its clock and its device; ``facts`` are its other fields."""
    seconds = clock.seconds
    busy = (seconds["transform"] + seconds["forward"]) / wall_s if wall_s > 0 else 0.0
    return Telemetry(
        seconds=seconds,
        wall_s=wall_s,
        n_tiles=n_tiles,
        device=str(device),
        device_busy=min(1.0, busy),
        convertible=all(isinstance(model.embedder, NetworkEmbedder) for model in models),
        compute_threads=torch.get_num_threads(),
        peak_rss_mb=peak_rss_mb(),
        peak_gpu_mb=torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0,
        **facts,
    )


def _event(*, timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]


def _elapsed_s(start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
    try:
        return float(start.elapsed_time(stop)) / 1e3
    except (RuntimeError, ValueError):
        return 0.0  # the batch failed before one of them was recorded
