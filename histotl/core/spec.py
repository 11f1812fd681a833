"""Spec strings: a component with its arguments as one line of text.

``"macenko(alpha=1.0)"`` is the same thing in Python, on the command line, in TOML, in a log, in a cache key and in a
report. Parsed with :func:`ast.literal_eval` only: a spec from a stranger's file cannot run code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from histotl.core.errors import SpecError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@+-]*")
_VERSIONED = re.compile(r"(.*) version (\d+)", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A component's name and its keyword arguments.

    Args:
        name: Registered name, such as ``macenko`` or ``timm/resnet50.a1_in1k``.
        args: Keyword arguments: numbers, strings, booleans, None, and tuples, lists or dicts of these.
    """

    name: str
    args: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.args:
            return self.name
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.args.items())})"


def parse_spec(text: str) -> Spec:
    """Read ``name`` or ``name(key=value, …)``; values are Python literals.

    Raises:
        SpecError: The text is not of that form; the message shows the text and an example.
    """
    text = text.strip()
    match = _NAME.match(text)
    if match is None:
        raise SpecError(f"spec {text!r} does not start with a name", hint="write it as name or name(key=value)")
    name, rest = match.group(), text[match.end() :].strip()
    if not rest:
        return Spec(name)
    # The call is parsed with a fixed function name because real names hold '/', '.' and '-'.
    try:
        call = ast.parse(f"f{rest}", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"spec {text!r} cannot be read", hint=f"write it as {name}(key=value, …)") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise SpecError(f"spec {text!r} is not name(key=value, …)", hint="name every argument")
    args: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in args:
            raise SpecError(f"spec {text!r} repeats or unpacks an argument", hint="name every argument once")
        try:
            args[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            shown = ast.unparse(keyword.value)
            cure = f"put text in quotes: {keyword.arg}='{shown}'"
            raise SpecError(f"spec {text!r}: {keyword.arg}={shown} is not a literal", hint=cure) from error
    return Spec(name, args)


def split_spec(text: str) -> list[str]:
    """The specs of a text in which several are joined by '+', such as ``"d4 + blur(max_sigma_px=1.0)"``.

    A '+' within brackets or quotes belongs to its spec. Names with a '+' cannot be joined.
    """
    parts, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and not escaped
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "+" and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]


def with_version(text: str, version: int) -> str:
    """A spec as identities hold it: ``macenko(alpha=1.0) version 2``.

    The first version goes without saying, as in files from before there were versions: they stay what they are.
    """
    return text if version == 1 else f"{text} version {version}"


def split_version(text: str) -> tuple[str, int]:
    """Inverse of :func:`with_version`."""
    match = _VERSIONED.fullmatch(text)
    return (text, 1) if match is None else (match[1], int(match[2]))
