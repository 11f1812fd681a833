"""Batches through the networks of one device. Copies and kernels are only queued here: on a GPU nothing waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from histotl.backbones._network import NetworkEmbedder
from histotl.embed._accelerator import Accelerator, Mark
from histotl.embed._models import Model
from histotl.embed.device import Forwards
from histotl.embed.telemetry import Clock, Telemetry, peak_rss_mb
from histotl.image.stain.base import FusedTransform

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Turns uint8 tiles (b, h, w, 3) on the device into others of that kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of one model on their way to the host.

    Args:
        host: float32 (b, dim) on the CPU; right once ``ready`` has happened.
        ready: The end of its copy.
    """

    host: torch.Tensor
    ready: Mark

    def numpy(self) -> npt.NDArray[np.float32]:
        """Wait for the copy, in whichever thread wants the numbers."""
        self.ready.wait()
        array: npt.NDArray[np.float32] = self.host.numpy()
        return array


@dataclass(kw_only=True, eq=False)
class _Queued:
    """A batch on the device.

    Args:
        release: Gives its buffer back.
        spans: Stage, its begin and its end, as far as they were asked for before something went wrong.
    """

    release: Callable[[], None]
    spans: list[tuple[str, Mark, Mark]] = field(default_factory=list)


class _Queue(threading.local):
    """Batches that a thread has on the device, oldest first."""

    def __init__(self) -> None:
        self.batches: deque[_Queued] = deque()


class Compute:
    """Runs batches on one device and measures how busy it is. Several threads may run theirs at once.

    Args:
        accelerator: The device.
        clock: Gets the seconds of ``copy``, ``quality``, ``transform``, ``augment`` and ``forward``.
    """

    def __init__(self, accelerator: Accelerator, clock: Clock) -> None:
        self._accelerator, self._clock = accelerator, clock
        self._queue = _Queue()

    def run(
        self,
        tiles: torch.Tensor,
        transform: Change,
        models: Sequence[Model],
        release: Callable[[], None],
        views: Sequence[Change] = (),
        figures: Change | None = None,
    ) -> list[Features]:
        """One batch through all models.

        Args:
            tiles: uint8 (b, h, w, 3) on the CPU.
            transform: Normalises the stain of tiles on the device.
            models: All get the same tiles.
            release: Called when ``tiles`` may be overwritten.
            views: Each makes an augmented view of the normalised tiles, on the device.
            figures: Measures the quality of the tiles as they are, float32 (b, m).

        Returns:
            Features of the tiles for every model, in order; then the same of every view; then the figures, if asked
            for.
        """
        self._settle(most=max(0, self._accelerator.in_flight - 1))
        batch = _Queued(release=release)
        self._queue.batches.append(batch)
        try:
            return self._ask(batch, tiles, transform, models, views, figures)
        finally:
            self._settle(most=self._accelerator.in_flight)

    def finish(self) -> None:
        """Wait for all that this thread has queued."""
        self._settle(most=0)

    def _ask(
        self,
        batch: _Queued,
        tiles: torch.Tensor,
        transform: Change,
        models: Sequence[Model],
        views: Sequence[Change],
        figures: Change | None,
    ) -> list[Features]:
        accelerator = self._accelerator
        with torch.inference_mode():
            on_device, begun, copied = accelerator.copy_in(tiles)
            batch.spans.append(("copy", begun, copied))
            ready = accelerator.mark()
            measured_figures = []
            if figures is not None:
                begun = ready
                measured_figures = [accelerator.copy_out(figures(on_device))]
                ready = accelerator.mark()
                batch.spans.append(("quality", begun, ready))
            # Views are made of normalised tiles; else each network's input is written by the kernel that normalises.
            fused = transform if isinstance(transform, FusedTransform) and not views else None
            fused = fused if fused is not None and fused.is_fused(on_device) else None
            normal = transform(on_device) if fused is None else on_device
            normalised = accelerator.mark()
            batch.spans.append(("transform", ready, normalised))
            found = [model(normal, fused) for model in models]
            last = accelerator.mark()
            batch.spans.append(("forward", normalised, last))
            copies = [accelerator.copy_out(features) for features in found]
            for view in views:
                # One view after the other: the device holds the tiles and one view of them, however many there are.
                begun, augmented = last, view(normal)
                made = accelerator.mark()
                found = [model(augmented) for model in models]
                last = accelerator.mark()
                batch.spans += [("augment", begun, made), ("forward", made, last)]
                copies += [accelerator.copy_out(features) for features in found]
        return [Features(host=host, ready=mark) for host, mark in copies + measured_figures]

    def _settle(self, *, most: int) -> None:
        """Wait for the oldest batches until no more than ``most`` are left; count their time, give back buffers."""
        queued = self._queue.batches
        while len(queued) > most:
            batch = queued.popleft()
            for stage, start, stop in batch.spans:
                stop.wait()
                self._clock.add(stage, stop.seconds_after(start))
            batch.release()


def measured(
    clock: Clock,
    models: Sequence[Model],
    device: torch.device,
    forwards: Forwards,
    *,
    wall_s: float,
    n_tiles: int,
    **facts: Any,
) -> Telemetry:
    """The telemetry of a run from its clock and its device; ``facts`` are its other fields."""
    seconds, most_s = clock.seconds, wall_s * forwards.count
    busy = sum(seconds[name] for name in ("quality", "transform", "augment", "forward")) / most_s if most_s > 0 else 0.0
    return Telemetry(
        seconds=seconds,
        wall_s=wall_s,
        n_tiles=n_tiles,
        device=str(device),
        device_busy=min(1.0, busy),
        convertible=all(isinstance(model.embedder, NetworkEmbedder) for model in models),
        forwards=forwards.count,
        compute_threads=forwards.threads,
        peak_rss_mb=peak_rss_mb(),
        peak_gpu_mb=torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0,
        **facts,
    )
