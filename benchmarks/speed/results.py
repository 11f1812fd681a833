"""What becomes of the timings: a JSON file with the machine's facts, and a Markdown table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.speed.harness import Said, Timing

LIBRARIES = (
    *("torch", "numpy", "timm", "openslide-python", "openslide-bin", "simplejpeg", "imagecodecs", "tifffile"),
    *("opencv-python-headless", "h5py", "scikit-learn"),
)


def machine() -> dict[str, object]:
    """Facts that a reader needs to judge the figures; nothing that names the machine."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "torch_threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name, "") for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")},
    }


def save(timings: Sequence[Timing], path: Path, *, not_measured: Mapping[str, str], **facts: object) -> None:
    """Write the results with the machine's facts, and others given, as JSON."""
    content = {
        "machine": machine(),
        **facts,
        "timings": [asdict(t) for t in timings],
        "not_measured": dict(not_measured),
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table(timings: Sequence[Timing], not_measured: Mapping[str, str]) -> str:
    """The results as a Markdown table, and below it what was not measured."""
    lines = ["| what | against | ratio (min–max) | goal | ours | also |", "|---|---|---|---|---|---|"]
    for t in timings:
        goal = "–" if t.goal is None else f"≤ {t.goal:.3g}, {_verdict(t.met)}"
        ratio = f"{t.ratio:.3g} ({t.ratio_low:.3g}–{t.ratio_high:.3g})"
        also = "; ".join(text for text in (t.rate, *map(_figure, t.figures)) if text)
        lines.append(f"| {t.name} | {t.against} | {ratio} | {goal} | {_amount(t.ours, t.measure)} | {also} |")
    if not_measured:
        lines += ["", "Not measured:", ""]
        lines += [f"- `{key}`: {reason}" for key, reason in not_measured.items()]
    return "\n".join(lines)


def _figure(said: Said) -> str:
    number = f"{said.value:,.0f}" if abs(said.value) >= 1000 else f"{said.value:.3g}"
    text = said.text.replace("{}", number)
    return text if said.goal is None else f"{text} (goal {said.goal:,.4g}, {_verdict(said.met)})"


def _verdict(met: bool | None) -> str:
    return "met" if met else "**missed**"


def _amount(value: float, measure: str) -> str:
    if measure != "s":
        return f"{value:.3g} {measure}".strip()
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
