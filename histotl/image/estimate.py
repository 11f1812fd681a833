"""What a slide's stain was found to be: a few named numbers, which can be averaged, saved and aimed at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histotl.core.errors import StainError, UsageError
from histotl.image._planes import CLEAR

Numbers = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """The stain of a slide, or of a cohort, as one method sees it.

    Args:
        method: Name of the stain normaliser.
        numbers: Arrays by name, the same names and shapes for every estimate of a method.
        pixels: Stained pixels that were looked at.
        slides: Slides that it is the median of; 1 for a slide itself.
        reason: Why it stands for a slide whose own stain could not be estimated; empty where it does not.
        white_unknown: Why its white is 255, where that of the glass was looked for and not found; else empty.
    """

    method: str
    numbers: Numbers = field(repr=False)
    pixels: int = 0
    slides: int = 1
    reason: str = ""
    white_unknown: str = ""

    @property
    def white(self) -> npt.NDArray[np.float64]:
        """Levels of R, G and B (3,) that it was measured against; 255 in those saved before there was a choice."""
        return self.numbers.get("white", np.array(CLEAR))

    @property
    def state(self) -> dict[str, object]:
        """The same as plain JSON values."""
        found = {name: values.tolist() for name, values in self.numbers.items()}
        why = {"fallback": "cohort", "reason": self.reason} if self.reason else {}
        unknown = {"white_unknown": self.white_unknown} if self.white_unknown else {}
        return {**found, "pixels": self.pixels, **unknown, **why}

    def to_json(self) -> str:
        """As text, for a file that ``target=`` may name."""
        return json.dumps({"method": self.method, "slides": self.slides, **self.state}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Estimate:
        """Inverse of :meth:`to_json`.

        Args:
            text: The file's text.
            where: Its name, for messages.

        Raises:
            UsageError: It is no such text.
        """
        try:
            found = json.loads(text)
            method, slides, pixels = found.pop("method"), int(found.pop("slides")), int(found.pop("pixels"))
            unknown = found.pop("white_unknown", "")
            numbers = {name: np.array(values, np.float64) for name, values in found.items()}
            if not isinstance(method, str) or not isinstance(unknown, str):
                raise TypeError("no names")
            if not all(np.isfinite(v).all() and v.size for v in numbers.values()):
                raise ValueError("not finite")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fact = f"{where} holds no saved stain: {type(error).__name__}: {error}"
            raise UsageError(fact, hint="give a file of OUT/stain, or a slide or an image") from error
        return cls(method=method, numbers=numbers, pixels=pixels, slides=slides, white_unknown=unknown)


def median(estimates: Sequence[Estimate]) -> Estimate:
    """The median of every number over slides, so that a few odd slides do not matter.

    The white is that of the slides whose glass was seen; the others' is only assumed.

    Raises:
        StainError: There are none.
    """
    if not estimates:
        raise StainError("the stain of no slide could be estimated, so the cohort has none", hint="use --stain none")
    first = estimates[0]
    numbers = {
        name: np.median(np.stack([estimate.numbers[name] for estimate in estimates]), axis=0) for name in first.numbers
    }
    seen = [estimate.white for estimate in estimates if not estimate.white_unknown]
    if "white" in numbers and seen:
        numbers["white"] = np.median(seen, axis=0)
    return Estimate(
        method=first.method,
        numbers=numbers,
        pixels=sum(estimate.pixels for estimate in estimates),
        slides=len(estimates),
        white_unknown="" if seen else first.white_unknown,
    )


def read_estimate(path: Path) -> Estimate:
    """An estimate that was saved.

    Raises:
        UsageError: The file cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"stain target {path} cannot be read: {error}", hint="check target='…'") from error
    return Estimate.from_json(text, where=str(path))
