"""What a device needs beside torch's operators: streams, marks in them, and its memory.

All devices go the same way through :class:`histotl.embed._compute.Compute`: copy in, compute, copy out, each with a
mark that is waited for by whoever needs it. On a CPU nothing is under way when a call returns: waiting is free there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch


class Mark(Protocol):
    """A place in the device's work."""

    def wait(self) -> None:
        """Wait until the work before it is done."""

    def seconds_after(self, earlier: Mark) -> float:
        """Time on the device since an earlier mark of the same kind; both are done."""


class Accelerator(Protocol):
    """A device and what is queued on it.

    Args:
        device: As torch names it.
        in_flight: Batches that may be queued when :meth:`Compute.run` returns. More than two only take memory: one that
            the device works on and one that is next.
        pinned: Whether host memory is page-locked, so that the device copies from and to it by itself.
    """

    device: torch.device
    in_flight: int
    pinned: bool

    def copy_in(self, tiles: torch.Tensor) -> tuple[torch.Tensor, Mark, Mark]:
        """Tiles of the host on the device, ready for what is computed next, and the marks around the copy."""

    def copy_out(self, features: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        """Features on the host, right once the mark is reached."""

    def mark(self) -> Mark:
        """Mark the end of what was asked for until now."""

    def finish(self) -> None:
        """Wait for all that was asked for."""

    def total_memory(self) -> int:
        """Bytes in all."""

    def most_memory(self) -> int:
        """Most bytes taken since :meth:`forget_most_memory`."""

    def forget_most_memory(self) -> None:
        """Begin a new measurement of memory, and give back what is cached."""


M = TypeVar("M")


def _alike(mark: Mark, kind: type[M]) -> M:
    if not isinstance(mark, kind):
        raise TypeError(
            f"a {type(mark).__name__} is no {kind.__name__}: marks of two devices have no time between them"
        )
    return mark


def accelerator_of(device: torch.device) -> Accelerator:
    """The accelerator for a device that torch has."""
    return Cuda(device) if device.type == "cuda" else Host(device)


@dataclass(frozen=True)
class HostMark:
    """A moment: what was asked for before is done."""

    at_s: float

    def wait(self) -> None:
        """Nothing to wait for."""

    def seconds_after(self, earlier: Mark) -> float:
        """Seconds between two moments."""
        return self.at_s - _alike(earlier, HostMark).at_s


class Host:
    """The CPU: tiles and features stay where they are."""

    in_flight = 0
    pinned = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def copy_in(self, tiles: torch.Tensor) -> tuple[torch.Tensor, Mark, Mark]:
        """The tiles themselves."""
        now = self.mark()
        return tiles, now, now

    def copy_out(self, features: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        """The features themselves."""
        return features, self.mark()

    def mark(self) -> Mark:
        """This moment."""
        return HostMark(time.perf_counter())

    def finish(self) -> None:
        """Nothing is under way."""

    def total_memory(self) -> int:
        """Not known: a CPU's batches are not sized by memory."""
        return 0

    def most_memory(self) -> int:
        """Not measured."""
        return 0

    def forget_most_memory(self) -> None:
        """Nothing is measured."""


class _CudaMark:
    """A CUDA event."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        """Wait in this thread; the GIL is free meanwhile."""
        self.event.synchronize()

    def seconds_after(self, earlier: Mark) -> float:
        """By the GPU's own clock."""
        return float(_alike(earlier, _CudaMark).event.elapsed_time(self.event)) / 1e3


class Cuda:
    """One GPU. Copies to it have a stream of their own, so that the next batch travels while this one is computed."""

    in_flight = 2
    pinned = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_in(self, tiles: torch.Tensor) -> tuple[torch.Tensor, Mark, Mark]:
        """Queue the copy, and make the computing stream wait for it."""
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            begun = self._recorded(self._copies)
            on_device = tiles.to(self.device, non_blocking=True)
            copied = self._recorded(self._copies)
        main.wait_event(copied.event)
        # The memory belongs to the copies' stream: it must not be given away while the main one reads it.
        on_device.record_stream(main)
        return on_device, begun, copied

    def copy_out(self, features: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        """Queue the copy behind what computes the features."""
        host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        host.copy_(features, non_blocking=True)
        return host, self.mark()

    def mark(self) -> Mark:
        """An event in the computing stream."""
        return self._recorded(torch.cuda.current_stream(self.device))

    def finish(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize(self.device)

    def total_memory(self) -> int:
        """Of the board."""
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def most_memory(self) -> int:
        """What torch took from the driver."""
        return torch.cuda.max_memory_reserved(self.device)

    def forget_most_memory(self) -> None:
        """Give back what is cached: it would count as taken."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def _recorded(self, stream: torch.cuda.Stream) -> _CudaMark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return _CudaMark(event)
