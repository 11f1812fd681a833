"""Times two pieces of work side by side: A B A B …, medians, and the ratio pair by pair.

A single time on a shared machine says little; the ratio of two times taken a moment apart says a lot. Every case names
its floor (what the work would cost if everything around its core were free) or its peer, and the figure is the ratio.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Args:
        name: What is timed.
        against: What it is compared with.
        goal: Largest ratio that is good, or None where there is no goal yet.
        ours: The work.
        reference: The floor or the peer, on the same input.
        units: Items that one call works on, for the rate; 0 for none.
        unit: What they are called.
    """

    name: str
    against: str
    ours: Callable[[], object]
    reference: Callable[[], object]
    goal: float | None = None
    units: int = 0
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Result of one case: seconds are medians, the ratio is the median of the pairwise ratios."""

    name: str
    against: str
    ours_s: float
    reference_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    goal: float | None
    rate: str
    rounds: int


def measure(case: Case, rounds: int = 5) -> Timing:
    """Run a case: one warm-up of each that does not count, then ``rounds`` alternations."""
    case.ours(), case.reference()
    ours, reference = [], []
    for _ in range(rounds):
        ours.append(_seconds(case.ours))
        reference.append(_seconds(case.reference))
    ratios = sorted(a / b for a, b in zip(ours, reference, strict=True))
    median = statistics.median(ours)
    return Timing(
        name=case.name,
        against=case.against,
        ours_s=median,
        reference_s=statistics.median(reference),
        ratio=statistics.median(ratios),
        ratio_low=ratios[0],
        ratio_high=ratios[-1],
        goal=case.goal,
        rate=f"{case.units / median:,.0f} {case.unit}/s" if case.units else "",
        rounds=rounds,
    )


def machine() -> dict[str, object]:
    """Facts that a reader needs to judge the figures."""
    import numpy
    import torch

    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def save(timings: list[Timing], path: Path) -> None:
    """Write the results with the machine's facts as JSON."""
    path.write_text(json.dumps({"machine": machine(), "timings": [asdict(t) for t in timings]}, indent=2) + "\n")


def table(timings: list[Timing]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | against | ratio (min–max) | goal | rate |", "|---|---|---|---|---|"]
    for t in timings:
        goal = f"≤ {t.goal:g}" if t.goal is not None else "–"
        lines.append(
            f"| {t.name} | {t.against} | {t.ratio:.2f} ({t.ratio_low:.2f}–{t.ratio_high:.2f}) | {goal} | {t.rate} |"
        )
    return "\n".join(lines)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
