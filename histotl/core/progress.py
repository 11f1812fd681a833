"""How a long stage tells the outside where it is: one callable, called with one frozen value.

Rooms below the command line never print. They take a :data:`Report` and call it; the command line draws a bar, a test
collects the values, a notebook ignores them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Step:
    """A moment of a long stage.

    Args:
        stage: What runs: ``tile``, ``embed``, ``train`` …
        done: Items finished (slides, epochs).
        total: Items in all; 0 when not known.
        item: Name of the current item.
        units_done: Finer units finished in all, such as tiles.
        units: What the finer units are called; empty when there are none.
        message: A sentence for the person, when something happened.
    """

    stage: str
    done: int = 0
    total: int = 0
    item: str = ""
    units_done: int = 0
    units: str = ""
    message: str = ""


Report = Callable[[Step], None]


def silent(step: Step) -> None:
    """The report that nobody reads."""
