"""Tables of a TOML file become the frozen configuration dataclasses, with the same names and checks as the flags."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import TypeVar

from histotl.core._literals import fit_literal
from histotl.core.errors import UsageError

T = TypeVar("T")


def from_mapping(cls: type[T], table: Mapping[str, object], *, where: str) -> T:
    """Build ``cls`` from a mapping of its field names.

    Args:
        cls: A dataclass.
        table: Field name -> value; fields left out keep their defaults.
        where: Names the table in messages, such as ``recipe.toml [embed]``.

    Raises:
        UsageError: An unknown key (the nearest one is named) or a missing one.
        SpecError: A value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast("typing.Any", cls)) if f.init}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            cure = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(fields)}"
            raise UsageError(f"{where} has no key {key!r}", hint=cure)
    for name, field in fields.items():
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if bare and name not in table:
            raise UsageError(f"{where} needs {name!r}", hint=f"add {name} = …")
    return cls(**{key: fit_literal(cls, key, value, where=where) for key, value in table.items()})
