"""Checks a literal from a spec string or a TOML file against a dataclass field's annotation."""

from __future__ import annotations

import types
import typing
from pathlib import Path

from histotl.core.errors import SpecError


def fit_literal(owner: type, name: str, value: object, *, where: str) -> object:
    """Return ``value`` as the annotated type of field ``name`` of ``owner``.

    Integers become floats and lists become tuples where the annotation says so; nothing else is converted.

    Raises:
        SpecError: The value is of another type, or none of those that there are.
    """
    hint = typing.get_type_hints(owner)[name]
    try:
        return _fit(value, hint)
    except TypeError as error:
        wanted = _words(hint)
        raise SpecError(f"{where}: {name}={value!r} is not {wanted}", hint=f"give {name} as {wanted}") from error


def _words(hint: object) -> str:
    """An annotation as a person would say it: values that are named one by one are listed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, args))
    if hint is type(None):
        return "None"
    return str(hint).replace("typing.", "") if args else getattr(hint, "__name__", str(hint))


def _fit(value: object, hint: object) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _fit(value, option)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        return _fit_choice(value, args)
    if origin is tuple:
        return _fit_tuple(value, args)
    return _fit_plain(value, type(None) if hint is None else (origin or hint))


def _fit_choice(value: object, choices: tuple[object, ...]) -> object:
    """The choice itself: 255.0 is equal to 255, but is written otherwise."""
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    raise TypeError


def _fit_plain(value: object, kind: object) -> object:
    if isinstance(value, bool) and kind in (int, float):
        raise TypeError  # True is an int to Python, and never what a user meant
    if kind is float and isinstance(value, int):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and not isinstance(value, kind):
        raise TypeError
    return value


def _fit_tuple(value: object, args: tuple[object, ...]) -> object:
    if not isinstance(value, list | tuple):
        raise TypeError
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_fit(item, args[0]) for item in value)
    if len(args) != len(value):
        raise TypeError
    return tuple(_fit(item, arg) for item, arg in zip(value, args, strict=True))
