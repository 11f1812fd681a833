"""A process that embeds and tells how much memory that took: ``python -m benchmarks.speed.memory SLIDES OUT SPEC``."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

import gc
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.running import embed, load
from histotl.backbones._network import NetworkEmbedder

SAMPLE_S = 0.005


def main() -> None:
    """Embed; print the peak of resident memory above that before the run, less the network's weights, in MB."""
    slides, out, spec = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    embedder = load(spec)  # imports all that loading needs; the run loads it again, and that copy is the one taken off
    weights = _bytes(embedder.module) if isinstance(embedder, NetworkEmbedder) else 0
    del embedder
    gc.collect()
    with _peak() as peak:
        summary = embed(slides, out, spec)
    json.dump({"mb": peak["mb"] - weights / 2**20, "tiles": summary.n_tiles, "how": peak["how"]}, sys.stdout)


def _bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


@contextmanager
def _peak() -> Iterator[dict[str, Any]]:
    """Most resident memory of a block above that at its beginning, MB: by the kernel's mark, else by looking often."""
    found: dict[str, Any] = {}
    before = _status("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        with _looking(found):
            yield found
        found.update(mb=found["mb"] - before, how=f"looked every {SAMPLE_S * 1e3:g} ms")
        return
    yield found
    found.update(mb=_status("VmHWM") - before, how="the kernel's mark")


@contextmanager
def _looking(found: dict[str, Any]) -> Iterator[None]:
    stop, most = threading.Event(), [_status("VmRSS")]

    def look() -> None:
        while not stop.wait(SAMPLE_S):
            most[0] = max(most[0], _status("VmRSS"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        found["mb"] = most[0]


def _status(name: str) -> float:
    """A line of the process's status, MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**10
    raise RuntimeError(f"the system does not say {name}")


if __name__ == "__main__":
    main()
