"""Where the time of a run went: seconds by stage, how busy the device was, and what would help."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

WORKING = ("build", "plan", "read", "decode", "resample", "copy", "quality", "transform", "augment", "forward", "write")
"""Stages that do work: once a run, getting networks ready (formats, compiling, trials); opening and planning; bytes off
the disk; JPEG decoding; cutting and resampling; to the device; quality figures; stain; augmented views; network, with
the stain where both are one on a GPU; to the file."""

WAITING = "wait"
"""The device has no tiles: on a CPU summed over the threads that compute."""

STAGES = (*WORKING, WAITING)

_HUNGRY = 0.1
"""Share of the run that the device may wait for tiles before reading counts as the bottleneck."""

_MOSTLY = 0.5
"""Share of the run that getting networks ready may take: beyond it nothing else is worth a change."""


class Clock:
    """Adds up seconds by stage; any thread may add."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count some seconds of a stage."""
        with self._lock:
            self._seconds[stage] += seconds  # type: ignore[assignment]  # Counter is typed for whole numbers

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block, also when it fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    @property
    def seconds(self) -> dict[str, float]:
        """What was counted so far, for every stage."""
        with self._lock:
            return {name: float(self._seconds[name]) for name in STAGES}


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Figures of one run.

    Args:
        seconds: Stage -> seconds, summed over its threads. Stages run beside each other, so they add up to more than
            the wall time; ``wait`` is the time in which those that compute had no tiles.
        wall_s: From the first look at what is there to the last file; loading the backbones is not in it, getting them
            ready (``build``) is.
        n_tiles: Tiles embedded.
        device: Where the network ran.
        device_busy: Share of the wall time in which the device worked (quality, stain, views, network), 0 to 1; of a
            CPU the mean over its forward passes.
        batch_size: Tiles in a full batch, at the end.
        readers: Threads that read.
        planners: Threads that opened and planned.
        compute_threads: Threads of a forward pass on a CPU.
        forwards: Forward passes side by side.
        decoder: What decoded JPEG tiles: ``cpu``, or ``nvjpeg`` where any slide's went to the GPU.
        jpeg_tiles: Compressed tiles of the files that were decoded directly.
        fallback_tiles: Tiles read region by region, because the format or a missing tile does not allow more.
        mbytes_read: Compressed megabytes fetched directly.
        convertible: Whether torch runs every backbone as it is, and another runtime or a compiler could.
        peak_rss_mb: Most memory of the process, MiB; 0 where the system does not say.
        peak_gpu_mb: Most memory of the GPU held by tensors, MiB.
        tiles_per_s: Tiles embedded a second of wall time.
        bottleneck: What limited the run, and the flag that would help.
    """

    seconds: Mapping[str, float]
    wall_s: float
    n_tiles: int
    device: str
    device_busy: float
    batch_size: int
    readers: int
    planners: int
    compute_threads: int
    forwards: int = 1
    decoder: str = "cpu"
    jpeg_tiles: int = 0
    fallback_tiles: int = 0
    mbytes_read: float = 0.0
    convertible: bool = True
    peak_rss_mb: float = 0.0
    peak_gpu_mb: float = 0.0
    tiles_per_s: float = field(init=False)
    bottleneck: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiles_per_s", self.n_tiles / self.wall_s if self.wall_s > 0 else 0.0)
        object.__setattr__(self, "bottleneck", _bottleneck(self))

    @property
    def line(self) -> str:
        """The stages that took at least a hundredth of the wall time, in one line."""
        shares = [(name, self.seconds.get(name, 0.0) / self.wall_s) for name in STAGES] if self.wall_s > 0 else []
        shown = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.01)
        beside = f", {self.forwards} forward passes side by side" if self.forwards > 1 else ""
        return f"{self.device} busy {self.device_busy:.0%}{beside}; of the wall time: {shown}"

    def share(self, seconds: float) -> float:
        """Share of all that the device could have done in the wall time."""
        return seconds / (self.wall_s * self.forwards)


def _bottleneck(run: Telemetry) -> str:
    """What limited the run, and the flag that would help."""
    if not run.n_tiles or run.wall_s <= 0:
        return ""
    build = run.seconds.get("build", 0.0) / run.wall_s
    if build > _MOSTLY:
        cure = "embed more in one run, or leave out --compile or --runtime if given"
        return f"getting the network ready: {build:.0%} of the time, once a run; {cure}"
    waiting = run.seconds.get(WAITING, 0.0)
    on_gpu = run.device.startswith("cuda")
    stages = ("quality", "transform", "augment", "forward")
    quality, transform, augment, forward = (run.seconds.get(name, 0.0) for name in stages)
    # A GPU must never starve; a CPU that works longer than it waits is itself what limits, whatever the first slide's
    # planning took.
    if run.share(waiting) > _HUNGRY and (on_gpu or waiting > quality + transform + augment + forward):
        return _hungry(run, run.share(waiting))
    if quality > max(transform, augment, forward):
        return f"quality figures: {run.share(quality):.0%} of the time; --quality none, or a GPU"
    if augment > max(transform, forward):
        return f"making views: {run.share(augment):.0%} of the time; a simpler --augment, fewer --views, or a GPU"
    if transform > forward:
        return f"stain normalisation: {run.share(transform):.0%} of the time; --stain none, or a GPU"
    if run.convertible:
        cpu = "--runtime openvino or --compile, --precision bf16 where the CPU has units for it, or a GPU"
        cure = "--compile, or a larger GPU" if on_gpu else cpu
    else:
        cure = "a larger GPU, or a smaller --backbone" if on_gpu else "a GPU, or a smaller --backbone"
    return f"the network: {run.device} was busy {run.device_busy:.0%} of the time; {cure}"


def _hungry(run: Telemetry, waited: float) -> str:
    """Which of the threads that feed the device is the slow one."""
    reading = sum(run.seconds.get(name, 0.0) for name in ("read", "decode", "resample"))
    planning = run.seconds.get("plan", 0.0)
    told = f"the network waited {waited:.0%} of the time for tiles"
    if planning / run.planners > reading / run.readers:
        return f"finding tissue: {told}; embed larger slides together with small ones, or make --tissue coarser"
    if run.seconds.get("read", 0.0) > run.seconds.get("decode", 0.0):
        return f"reading the files: {told}; copy the slides to a local disk, or --workers {2 * run.readers}"
    if run.fallback_tiles > run.jpeg_tiles:
        return f"decoding through the slide library: {told}; --workers {run.readers + 1}, or tiled JPEG slides"
    more = f"--workers {run.readers + 1}, where there are cores"
    return f"decoding: {told}; {more}" + (", or --decode nvjpeg on a GPU" if run.decoder == "cpu" else "")


def peak_rss_mb() -> float:
    """Most memory that this process ever had, MiB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10
