"""Times two pieces of work side by side: A B A B …, medians, and the ratio pair by pair.

A single time on a shared machine says little; the ratio of two times taken a moment apart says a lot. Every case names
its floor (what the work would cost if everything around its core were free) or its peer, and the figure is the ratio.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.speed.inputs import Inputs

LIBRARIES = ("torch", "numpy", "timm", "openslide-python", "openslide-bin", "imagecodecs", "h5py", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Args:
        name: What is timed.
        against: What it is compared with.
        ours: The work.
        reference: The floor or the peer, on the same input.
        goal: Largest ratio that is good, or None where there is no goal.
        same: Takes what both gave in the warm-up and says whether they did the same work; None where the results
            cannot be compared.
        threads: Threads of torch and of the linear algebra library on both sides; None leaves them as they are.
        scale: The reference does this many times less work than ours, and its time is multiplied by it.
        units: Items that one call works on, for the rate; 0 for none.
        unit: What they are called.
        note: Takes the median seconds of both sides, says what the ratio does not.
        most_rounds: Of a long case.
    """

    name: str
    against: str
    ours: Callable[[], Any]
    reference: Callable[[], Any]
    goal: float | None = None
    same: Callable[[Any, Any], bool] | None = None
    threads: int | None = 1
    scale: float = 1.0
    units: int = 0
    unit: str = ""
    note: Callable[[float, float], str] | None = None
    most_rounds: int = 1000


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Result of one case: seconds are medians, the ratio is the median of the pairwise ratios."""

    key: str
    name: str
    against: str
    ours_s: float
    reference_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    goal: float | None
    rate: str
    note: str
    threads: int | None
    rounds: int


Maker = Callable[[Inputs], Case]
MAKERS: dict[str, Maker] = {}
"""Key -> what builds the case on some inputs."""


def case(key: str) -> Callable[[Maker], Maker]:
    """Register a function that builds a case; its inputs are made only when the case is run."""

    def register(maker: Maker) -> Maker:
        if key in MAKERS:
            raise ValueError(f"two cases are called {key!r}")
        MAKERS[key] = maker
        return maker

    return register


def run(key: str, inputs: Inputs, rounds: int = 5) -> Timing:
    """Build one case and measure it."""
    return measure(MAKERS[key](inputs), rounds, key=key)


def measure(case: Case, rounds: int = 5, *, key: str = "") -> Timing:
    """Run a case: one warm-up of each that does not count, then ``rounds`` alternations."""
    ours, reference = [], []
    rounds = min(rounds, case.most_rounds)
    with _threads(case.threads):
        made, wanted = case.ours(), case.reference()
        if case.same is not None and not case.same(made, wanted):
            raise ValueError(f"{key or case.name}: the two sides do not give the same")
        del made, wanted
        for _ in range(rounds):
            ours.append(_seconds(case.ours))
            reference.append(_seconds(case.reference) * case.scale)
    ratios = sorted(a / b for a, b in zip(ours, reference, strict=True))
    ours_s, reference_s = statistics.median(ours), statistics.median(reference)
    return Timing(
        key=key,
        name=case.name,
        against=case.against,
        ours_s=ours_s,
        reference_s=reference_s,
        ratio=statistics.median(ratios),
        ratio_low=ratios[0],
        ratio_high=ratios[-1],
        goal=case.goal,
        rate=f"{case.units / ours_s:,.0f} {case.unit}/s" if case.units else "",
        note=case.note(ours_s, reference_s) if case.note else "",
        threads=case.threads,
        rounds=rounds,
    )


def machine() -> dict[str, object]:
    """Facts that a reader needs to judge the figures; nothing that names the machine."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "torch_threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name, "") for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")},
    }


def save(timings: list[Timing], path: Path, **facts: object) -> None:
    """Write the results with the machine's facts, and others given, as JSON."""
    content = {"machine": machine(), **facts, "timings": [asdict(t) for t in timings]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table(timings: list[Timing]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | against | ratio (min–max) | goal | ours | rate |", "|---|---|---|---|---|---|"]
    for t in timings:
        goal = "–" if t.goal is None else f"≤ {t.goal:.3g}, {'met' if t.ratio <= t.goal else '**missed**'}"
        ratio = f"{t.ratio:.3g} ({t.ratio_low:.3g}–{t.ratio_high:.3g})"
        rate = "; ".join(text for text in (t.rate, t.note) if text)
        lines.append(f"| {t.name} | {t.against} | {ratio} | {goal} | {_duration(t.ours_s)} | {rate} |")
    return "\n".join(lines)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    with threadpool_limits(limits=count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
