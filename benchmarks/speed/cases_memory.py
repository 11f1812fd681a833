"""Peak memory of whole runs, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from benchmarks.speed.harness import Case, Figure, Measured, NotMeasured, Sides, case
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.sampling import sample_spec, timm_spec
from benchmarks.speed.workers import ROOT, python

LIMIT_MB = 2048


def _peak(slides: Path, out: Path, spec: str) -> Measured:
    if not Path("/proc/self/status").is_file():
        raise NotMeasured("needs Linux's /proc")
    command = [python(), "-m", "benchmarks.speed.memory", str(slides), str(out), spec]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measured process failed:\n{done.stderr}")
    answer = json.loads(done.stdout)
    return Measured(value=max(answer["mb"], 1.0), result=answer["tiles"])


@case("memory/flat")
def flat(inputs: Inputs) -> Case:
    """Without a network the readers are never ahead of anything, and the writer has most to do."""
    spec, count = sample_spec(inputs.folder), inputs.scale.memory_slides

    def larger(sides: Sides) -> float:
        return max(sides.ours, sides.reference) / min(sides.ours, sides.reference)

    return Case(
        name=f"peak memory beyond the model, one slide of {inputs.scale.huge_px}² px, no network",
        against=f"{count} small slides",
        ours=lambda: _peak(inputs.huge, inputs.folder / "memory-one", spec),
        reference=lambda: _peak(inputs.many_slides, inputs.folder / "memory-many", spec),
        same=lambda a, b: a > 0 and b > 0,
        measure="MB",
        threads=None,
        figures=(
            Figure(text="larger over smaller {}", of=larger, goal=1.3),
            Figure(text="the small slides {} MB", of=lambda s: s.reference, goal=LIMIT_MB),
            Figure(text="the large one {} MB", of=lambda s: s.ours, goal=LIMIT_MB),
        ),
    )


@case("memory/network")
def network(inputs: Inputs) -> Case:
    """With a network that takes much memory, and where it is the readers that wait."""
    resnet, fast = timm_spec(inputs.scale.cnn), timm_spec("mobilenetv3_small_100")
    return Case(
        name=f"peak memory beyond the model, {inputs.scale.cnn}",
        against="mobilenetv3_small_100 on the same slide",
        ours=lambda: _peak(inputs.slow, inputs.folder / "memory-slow", resnet),
        reference=lambda: _peak(inputs.slow, inputs.folder / "memory-fast", fast),
        same=lambda a, b: a == b,
        measure="MB",
        threads=None,
        figures=(Figure(text=inputs.scale.cnn + " {} MB", of=lambda s: s.ours, goal=LIMIT_MB),),
        most_rounds=3,
    )
