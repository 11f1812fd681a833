"""Options of ``paint``: Python keyword arguments, TOML keys and command-line flags in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from histotl.core.errors import UsageError
from histotl.core.units import MPP_MIN

FOREIGN: Final = ("adipose", "muscle", "brown")
LABELS: Final = ("type", "dysplasia")
_MPP_COARSEST = 2.0


@dataclass(frozen=True, kw_only=True)
class PaintConfig:
    """What cohort to paint."""

    patients: int = 36
    """Number of patients; types, sites and splits are balanced over them, best from 24 on."""

    seed: int = 0
    """The same seed gives the same files, byte for byte."""

    mpp: float = 0.5
    """Micrometres per pixel of level 0, 0.05 to 2."""

    second_slides: int = 4
    """Patients with two slides; at most all."""

    missing_dysplasia: float = 0.2
    """Share of patients whose dysplasia is left empty in the table, 0 to 1."""

    artefact_share: float = 0.12
    """Share of slides with each of pen mark, fold and blur (at least one slide each unless 0), 0 to 1."""

    bubble_share: float = 0.0
    """Share of slides with an air bubble, likewise; the other slides of a cohort are the same with and without."""

    foreign: tuple[str, ...] = FOREIGN
    """Out-of-distribution slides to add with split ood: some of adipose, muscle and brown (an immunostain)."""

    size_um: tuple[float, float] = (1040.0, 800.0)
    """Mean width and height of a slide in µm; slides vary by a tenth."""

    prefix: str = "P"
    """What names of patients and slides begin with: two cohorts that are used together need names of their own."""

    labels: tuple[str, ...] = LABELS
    """Labels that the table tells, of type and dysplasia; the others are empty, as in cohorts made for one question."""

    workers: int = 1
    """Slides painted at a time, each in its own process; 1 paints in this process."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: A value is out of range.
        """
        if self.patients < 1:
            raise UsageError(f"patients is {self.patients}", hint="use patients=36")
        if not MPP_MIN <= self.mpp <= _MPP_COARSEST:
            raise UsageError(
                f"mpp is {self.mpp}, nuclei are painted at {MPP_MIN} to {_MPP_COARSEST} µm/px", hint="try 0.5"
            )
        for name in ("missing_dysplasia", "artefact_share", "bubble_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share}, a share is 0 to 1", hint=f"try {name}=0.1")
        if self.second_slides < 0:
            raise UsageError(f"second_slides is {self.second_slides}", hint="use second_slides=0 or more")
        if min(self.size_um) < 250:
            raise UsageError(f"size_um is {self.size_um}, too small for a few glands", hint="use 250 µm or more a side")
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}", hint="use workers=1 or more")
        self._check_names()

    def _check_names(self) -> None:
        if not self.prefix.isalnum():
            raise UsageError(f"prefix is {self.prefix!r}, it becomes part of file names", hint="use letters and digits")
        if not self.labels or not set(self.labels) <= set(LABELS):
            raise UsageError(f"labels are {self.labels}", hint=f"use some of {', '.join(LABELS)}")
        for name in self.foreign:
            if name not in FOREIGN:
                raise UsageError(f"no foreign tissue is called {name!r}", hint=f"use some of {', '.join(FOREIGN)}")
        if len(set(self.foreign)) < len(self.foreign):
            raise UsageError(f"foreign names one tissue twice: {self.foreign}", hint="name each once")
