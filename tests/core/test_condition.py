"""Conditions on quality figures: what they mean, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from histotl.core.condition import Condition
from histotl.core.errors import UsageError

VALUES = {"pen": np.array([0.0, 0.1, np.nan, 0.9], np.float32), "focus": np.array([2.0, 1.0, 2.0, np.nan], np.float32)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pen < 0.05", [True, False, False, False]),
        ("pen < 0.5 and focus >= 2", [True, False, False, False]),
        ("pen > 0.5 or focus > 1.5", [True, False, True, True]),
        ("0.05 < pen <= 0.9", [False, True, False, True]),
        ("pen != 0.5", [True, True, False, True]),
        ("focus > -1", [True, True, True, False]),
        ("focus > pen and (pen < 0.05 or pen > 0.05)", [True, True, False, False]),
    ],
)
def test_nan_satisfies_no_comparison(text: str, wanted: list[bool]) -> None:
    assert Condition.parse(text).holds(VALUES).tolist() == wanted


def test_a_condition_tells_its_columns() -> None:
    assert Condition.parse(" pen < 1 or focus > 2 ").columns == ("focus", "pen")


@pytest.mark.parametrize(
    "text",
    ["", "pen", "pen <", "__import__('os')", "pen.real < 1", "pen + 1 < 2", "pen < '1'", "not pen < 1", "1 < 2",
     "pen < True", "pen in (1, 2)", "pen < 1 if 1 else 2", "(" * 500, "pen < 1; focus > 2"],
)  # fmt: skip
def test_what_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="condition"):
        Condition.parse(text)


def test_an_unknown_column_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'pin' was not measured") as caught:
        Condition.parse("pin < 1").check(["pen", "focus"])
    assert caught.value.hint == "did you mean pen?"
    with pytest.raises(UsageError) as caught:
        Condition.parse("zzz < 1").check(["pen", "focus"])
    assert caught.value.hint == "there is: pen, focus"
