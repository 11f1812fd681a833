"""Times two pieces of work side by side: A B A B …, medians, and the ratio pair by pair.

A single time on a shared machine says little; the ratio of two times taken a moment apart says a lot. Every case names
its floor (what the work would cost if everything around its core were free) or its peer, and the figure is the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.speed.inputs import Inputs


class NotMeasured(Exception):  # noqa: N818 - not an error: the case needs what is not here
    """A case cannot run here; the text says what it needs."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a side gives back when it has measured itself, because the work is in another process or is no time.

    Args:
        value: In the case's unit.
        cpu: CPU seconds that it took, 0 where they are not known.
        result: What it made, for the comparison.
    """

    value: float
    cpu: float = 0.0
    result: Any = None


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Medians of both sides, for what a case says beside its ratio.

    Args:
        ours: In the case's unit.
        reference: Likewise.
        ours_cpu: CPU seconds of all threads.
        reference_cpu: Likewise.
    """

    ours: float
    reference: float
    ours_cpu: float
    reference_cpu: float


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that the ratio does not say.

    Args:
        text: How it is shown; ``{}`` is replaced by the number.
        of: Computes it at the end.
        goal: The least or, with ``more`` false, the largest number that is good; None where there is no goal.
        more: A larger number is better.
    """

    text: str
    of: Callable[[Sides], float]
    goal: float | None = None
    more: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Args:
        name: What is timed.
        against: What it is compared with.
        ours: The work; its wall time counts, or what it says itself by :class:`Measured`.
        reference: The floor or the peer, on the same input.
        goal: Largest ratio that is good, or None where there is no goal.
        same: Takes what both gave in the warm-up and says whether they did the same work; None where the results
            cannot be compared.
        threads: Threads of torch and of the linear algebra library on both sides; None leaves them as they are.
        scale: The reference does this many times less work than ours, and its time is multiplied by it.
        units: Items that one call works on, for the rate; 0 for none.
        unit: What they are called.
        measure: Unit of both sides: ``s`` for time, ``MB``, or empty for a plain number.
        figures: Further numbers, some with goals.
        most_rounds: Of a case that gains nothing by more.
        close: Called at the end, also after an error: stops what the case started.
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
    measure: str = "s"
    figures: tuple[Figure, ...] = ()
    most_rounds: int = 1000
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Said:
    """A figure with its number."""

    text: str
    value: float
    goal: float | None
    met: bool | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Result of one case: both sides are medians, the ratio is the median of the pairwise ratios."""

    key: str
    name: str
    against: str
    ours: float
    reference: float
    measure: str
    ours_cpu_s: float
    reference_cpu_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    goal: float | None
    met: bool | None
    rate: str
    threads: int | None
    rounds: int
    figures: list[Said] = field(default_factory=list)


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
    """Build one case and measure it.

    Raises:
        NotMeasured: It needs something that is not here.
    """
    return measure(MAKERS[key](inputs), rounds, key=key)


def measure(case: Case, rounds: int = 5, *, key: str = "") -> Timing:
    """Run a case: one warm-up of each that does not count, then ``rounds`` alternations."""
    ours, reference = [], []
    rounds = min(rounds, case.most_rounds)
    try:
        with torch_threads(case.threads):
            made, wanted = _measured(case.ours).result, _measured(case.reference).result
            if case.same is not None and not case.same(made, wanted):
                raise ValueError(f"{key or case.name}: the two sides do not give the same")
            del made, wanted
            for _ in range(rounds):
                ours.append(_measured(case.ours, keep=False))
                reference.append(_measured(case.reference, keep=False))
        return _timing(case, key, ours, reference)
    finally:
        case.close()


def _timing(case: Case, key: str, ours: list[Measured], reference: list[Measured]) -> Timing:
    ratios = sorted(a.value / (b.value * case.scale) for a, b in zip(ours, reference, strict=True))
    sides = Sides(
        ours=statistics.median(m.value for m in ours),
        reference=statistics.median(m.value for m in reference) * case.scale,
        ours_cpu=statistics.median(m.cpu for m in ours),
        reference_cpu=statistics.median(m.cpu for m in reference) * case.scale,
    )
    ratio = float(statistics.median(ratios))
    return Timing(
        key=key,
        name=case.name,
        against=case.against,
        ours=sides.ours,
        reference=sides.reference,
        measure=case.measure,
        ours_cpu_s=sides.ours_cpu,
        reference_cpu_s=sides.reference_cpu,
        ratio=ratio,
        ratio_low=ratios[0],
        ratio_high=ratios[-1],
        goal=case.goal,
        met=None if case.goal is None else ratio <= case.goal,
        rate=f"{case.units / sides.ours:,.0f} {case.unit}/s" if case.units else "",
        threads=case.threads,
        rounds=len(ours),
        figures=[_said(figure, sides) for figure in case.figures],
    )


def _said(figure: Figure, sides: Sides) -> Said:
    value = float(figure.of(sides))
    if figure.goal is None:
        return Said(text=figure.text, value=value, goal=None, met=None)
    met = value >= figure.goal if figure.more else value <= figure.goal
    return Said(text=figure.text, value=value, goal=figure.goal, met=met)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Give torch and the linear algebra library a number of threads for a while; None leaves them as they are."""
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


def _measured(work: Callable[[], Any], *, keep: bool = True) -> Measured:
    cpu, began = time.process_time(), time.perf_counter()
    result = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if isinstance(result, Measured):
        return result
    return Measured(value=seconds, cpu=cpu, result=result if keep else None)
