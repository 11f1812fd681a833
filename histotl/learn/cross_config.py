"""Settings of cross-validation. The fields are the keyword arguments, the TOML keys and the flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from histotl.core.errors import UsageError

Together = Literal["auto", "yes", "no"]


@dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """How often models are trained and tested on other patients."""

    folds: int = 5
    """Parts that the patients are dealt into, with the labels of all tasks spread evenly."""
    seeds: int = 1
    """Times that this is done anew, with other folds and other first weights."""
    together: Together = "auto"
    """Train the networks of all folds and seeds at once: 'yes', 'no', or 'auto' for on a GPU, where it pays, if the
    aggregator has no weights or is 'abmil', sharing is 'hard' and balancing 'equal'."""

    def __post_init__(self) -> None:
        if self.folds < 3 or self.seeds < 1:
            cure = "give 3 folds or more (one is tested, one validates) and 1 seed or more"
            raise UsageError(f"folds is {self.folds}, seeds is {self.seeds}", hint=cure)
