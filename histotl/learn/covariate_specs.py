"""The texts by which a user says what networks are told beside the tiles; read without loading anything heavy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, cast

from histotl.core._literals import fit_literal
from histotl.core.errors import SpecError, UsageError
from histotl.core.spec import Spec, parse_spec

Kind = Literal["number", "category"]
Fusion = Literal["concat", "film"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Covariate:
    """A known fact about a case, such as age or site, that networks are given beside the tiles.

    Args:
        name: Name in every message; letters, digits, ``_ . -``.
        kind: ``number``, or ``category`` for words.
        column: Column of the label table; the covariate's name when empty.
        map: Column value -> another one, None for missing. The key ``*`` stands for all values not named; without it
            they pass through as they are.
        fusion: ``concat`` puts it beside the vector of the bag; ``film`` scales and shifts every number of that vector
            by it (Perez et al., "FiLM: visual reasoning with a general conditioning layer", AAAI 2018), so that the
            same tissue may mean something else at another site even to a linear head.
        least: Categories that fewer training cases have than this are one category, ``other``.
    """

    name: str
    kind: Kind = "number"
    column: str = ""
    map: Mapping[str, str | None] = field(default_factory=dict)
    fusion: Fusion = "concat"
    least: int = 1

    def __post_init__(self) -> None:
        where = f"covariate {self.name!r}"
        if not _NAME.fullmatch(self.name):
            cure = f"use letters, digits, '_', '.' and '-': age: number(column={self.name!r})"
            raise UsageError(f"the name of {where} is not usable", hint=cure)
        object.__setattr__(self, "column", self.column or self.name)
        if self.least < 1:
            raise UsageError(f"{where}: least is {self.least}", hint="give a number of cases of 1 or more")
        if self.kind == "number" and self.least > 1:
            raise UsageError(f"{where}: least= is for categories", hint=f"drop it, or write {self.name}: category")

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"map": dict(self.map)}

    def __str__(self) -> str:
        plain = Covariate(name=self.name, kind=self.kind).to_dict()
        return f"{self.name}: {Spec(self.kind, {k: v for k, v in self.to_dict().items() if v != plain[k]})}"


def parse_covariate(text: str) -> Covariate:
    """Read ``name``, which is a number, or ``name: kind(column='…', map={'…': '…'}, fusion='film', …)``.

    Raises:
        SpecError: The text is not of that form, or has a wrong argument.
        UsageError: The covariate itself is wrong.
    """
    name, colon, rest = text.partition(":")
    if colon and not rest.strip():
        raise SpecError(f"covariate {text!r} has no kind", hint=f"write {name.strip()}: category")
    spec = parse_spec(rest) if colon else Spec("number")
    return covariate_from_dict({**spec.args, "name": name.strip(), "kind": spec.name})


def covariate_from_dict(entry: Mapping[str, object]) -> Covariate:
    """Inverse of :meth:`Covariate.to_dict`.

    Raises:
        SpecError: An argument that a covariate does not have, or of another type.
    """
    where, known = f"covariate {entry.get('name')!r}", [each.name for each in fields(Covariate)]
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(known[1:])}"
            raise SpecError(f"{where} has no argument {key!r}", hint=cure)
    given = {key: fit_literal(Covariate, key, value, where=where) for key, value in entry.items()}
    mapping = cast("Mapping[object, object]", given.get("map", {}))
    strange = [value for value in mapping.values() if isinstance(value, list | tuple | Mapping)]
    if strange:
        raise SpecError(f"{where}: {strange[0]!r} is no value of a column", hint="write map={'x': 'a', 'y': None}")
    return Covariate(**given)  # type: ignore[arg-type]  # of the annotated types


def parse_covariates(texts: Sequence[str]) -> tuple[Covariate, ...]:
    """Read several.

    Raises:
        SpecError: A text cannot be read.
        UsageError: One is wrong, or a name comes twice.
    """
    found = tuple(parse_covariate(text) for text in texts)
    names = [covariate.name for covariate in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two covariates are called {twice[0]!r}", hint="name each once")
    return found
