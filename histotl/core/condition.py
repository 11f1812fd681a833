"""Conditions on named numbers, such as ``focus_laplacian > 0.5 and (pen < 0.05 or blank == 0)``.

Only comparisons of names with numbers, joined by ``and`` and ``or``. The text is parsed, and never run as Python.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from histotl.core.errors import UsageError

Mask = npt.NDArray[np.bool_]

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_CURE = "write comparisons such as 'focus_laplacian > 0.5 and pen < 0.05', joined by and, or, brackets"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition; what is NaN satisfies no comparison.

    Args:
        text: As it was written.
        columns: The names in it, sorted.
    """

    text: str
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            UsageError: It is no comparison of names with numbers.
        """
        names = sorted({node.id for node in ast.walk(_checked(text)) if isinstance(node, ast.Name)})
        if not names:
            raise UsageError(f"condition {text!r} names nothing that was measured", hint=_CURE)
        return cls(text=text.strip(), columns=tuple(names))

    def check(self, known: Sequence[str]) -> None:
        """Refuse names that are not among the known ones.

        Raises:
            UsageError: One is not; the hint gives the nearest, or all.
        """
        for name in self.columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                cure = f"did you mean {near[0]}?" if near else f"there is: {', '.join(known) or 'nothing'}"
                raise UsageError(f"condition {self.text!r}: {name!r} was not measured", hint=cure)

    def holds(self, values: Mapping[str, npt.NDArray[np.floating]]) -> Mask:
        """Which rows satisfy it.

        Args:
            values: For every name of :attr:`columns`, (n,) numbers.

        Returns:
            bool (n,).
        """
        rows = len(next(iter(values.values())))
        return np.broadcast_to(_evaluate(_checked(self.text), values), rows)


def _checked(text: str) -> ast.expr:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"condition {text!r} cannot be read", hint=_CURE) from error
    _check(tree, text)
    return tree


def _check(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            _check(part, text)
        return
    if not isinstance(node, ast.Compare) or not all(type(op) in _COMPARE for op in node.ops):
        raise UsageError(f"condition {text!r}: {ast.unparse(node)!r} is no comparison", hint=_CURE)
    for side in (node.left, *node.comparators):
        if not isinstance(side, ast.Name) and _number(side) is None:
            raise UsageError(f"condition {text!r}: {ast.unparse(side)!r} is no name and no number", hint=_CURE)


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]  # one of the two
    return None


def _evaluate(node: ast.expr, values: Mapping[str, npt.NDArray[np.floating]]) -> Mask:
    if isinstance(node, ast.BoolOp):
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(reduce(join, [_evaluate(part, values) for part in node.values]))
    if not isinstance(node, ast.Compare):
        raise UsageError(f"{ast.unparse(node)!r} is no comparison", hint=_CURE)
    sides = [_value(side, values) for side in (node.left, *node.comparators)]
    found = [
        _COMPARE[type(op)](left, right) & ~(np.isnan(left) | np.isnan(right))
        for op, left, right in zip(node.ops, sides[:-1], sides[1:], strict=True)
    ]
    return np.asarray(reduce(np.logical_and, found))


def _value(node: ast.expr, values: Mapping[str, npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    if isinstance(node, ast.Name):
        return np.asarray(values[node.id], dtype=np.float64)
    return np.asarray(_number(node), dtype=np.float64)
