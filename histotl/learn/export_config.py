"""Settings of ``export``. The fields are the keyword arguments, the TOML keys and the flags."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What of a model is kept apart."""

    member: int = 0
    """Which of the model's networks; they were trained from different seeds."""

    def __post_init__(self) -> None:
        if self.member < 0:
            raise UsageError(f"member is {self.member}", hint="give 0 for the first")
