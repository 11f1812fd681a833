"""The texts by which a user says how answers are decided; read without loading anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from histotl.core.errors import UsageError
from histotl.core.spec import parse_spec

RAPS_PENALTY, RAPS_FREE = 0.01, 2
"""Of ``raps`` without arguments."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a threshold is chosen for.

    Args:
        name: ``none``, ``youden`` (largest sensitivity + specificity), ``sensitivity`` (the most specific one that
            finds at least this share), or ``cost`` (least cost when a missed case costs this many false alarms).
        value: Of ``sensitivity`` and ``cost``.
    """

    name: str
    value: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}" if self.value else self.name


def parse_rule(text: str) -> Rule:
    """Read ``none``, ``youden``, ``sensitivity=0.95`` or ``cost=5``.

    Raises:
        UsageError: It is none of these, or the number makes no sense.
    """
    name, _, number = text.replace(" ", "").partition("=")
    if name in ("none", "youden") and not number:
        return Rule(name=name)
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if (name == "sensitivity" and 0 < value <= 1) or (name == "cost" and 0 < value < float("inf")):
        return Rule(name=name, value=value)
    raise UsageError(f"threshold is {text!r}", hint="write none, youden, sensitivity=0.95 or cost=5")


def parse_sets(text: str) -> tuple[float, int]:
    """Penalty and free classes of ``aps`` or ``raps(penalty=0.01, free=2)``.

    Raises:
        SpecError: The text cannot be read.
        UsageError: It is neither, or a number makes no sense.
    """
    spec = parse_spec(text)
    if spec.name == "aps" and not spec.args:
        return 0.0, 1
    args = {"penalty": RAPS_PENALTY, "free": RAPS_FREE, **spec.args}
    penalty, free = args["penalty"], args["free"]
    sensible = isinstance(penalty, int | float) and isinstance(free, int) and penalty >= 0 and free >= 0
    if spec.name != "raps" or set(args) != {"penalty", "free"} or not sensible:
        raise UsageError(f"sets is {text!r}", hint="write aps, or raps(penalty=0.01, free=2)")
    return float(cast("float", penalty)), int(cast("int", free))
