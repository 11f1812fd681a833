from __future__ import annotations

import numpy as np
import pytest

from histotl.core.errors import SpecError, UsageError
from histotl.learn.applies import chances, masked, parse_applies
from histotl.learn.task import Task, check_names

TYPE = Task(name="histotype", kind="multiclass", classes=("NORM", "HP", "TA", "TVA"))
GRADE = Task(name="dysplasia", kind="binary", classes=("LG", "HG"), applies_if="histotype in ('TA', 'TVA')")
ODD = Task(name="odd", kind="regression", applies_if="dysplasia == 'HG'")


def test_labels_count_where_the_parent_applies() -> None:
    targets = {
        "histotype": np.array([0, 2, 3, np.nan, 2]),
        "dysplasia": np.array([1, 0, 1, 1, np.nan]),
        "odd": np.arange(5.0),
    }
    found = masked([ODD, GRADE, TYPE], targets)
    np.testing.assert_array_equal(found["dysplasia"], [np.nan, 0, 1, np.nan, np.nan])
    # A parent that does not apply itself is a missing label.
    np.testing.assert_array_equal(found["odd"], [np.nan, np.nan, 2, np.nan, np.nan])


def test_the_chance_that_a_task_applies_is_that_of_the_parents_classes() -> None:
    p = {"histotype": np.array([[0.1, 0.2, 0.3, 0.4]]), "dysplasia": np.array([[0.25, 0.75]])}
    found = chances([TYPE, GRADE, ODD], p)
    assert found["dysplasia"] == pytest.approx([0.7])
    assert found["odd"] == pytest.approx([0.7 * 0.75])
    against = Task(name="x", kind="regression", applies_if="histotype != 'NORM'")
    assert chances([TYPE, against], p)["x"] == pytest.approx([0.9])


@pytest.mark.parametrize(
    "text", ["histotype", "histotype > 3", "a in ('x',) and b == 'y'", "f(x) == 'y'", "a in 'x'", "("]
)
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_applies(text)
    assert "applies_if" in caught.value.hint


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([GRADE], "'histotype' is no task with classes"),
        (
            [Task(name="size", kind="regression"), Task(name="x", kind="regression", applies_if="size == '3'")],
            "no task",
        ),
        ([TYPE, Task(name="x", kind="regression", applies_if="histotype == 'tva'")], "no class 'tva'"),
        (
            [
                Task(name="a", kind="binary", classes=("n", "y"), applies_if="b == 'y'"),
                Task(name="b", kind="binary", classes=("n", "y"), applies_if="a == 'y'"),
            ],
            "circle",
        ),
    ],
)
def test_conditions_on_what_is_not_there_are_refused(tasks: list[Task], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_names(tasks)
    assert caught.value.hint


def test_an_auxiliary_parent_gives_no_answer_to_condition_on() -> None:
    helper = Task(name="histotype", kind="multiclass", classes=TYPE.classes, auxiliary=True)
    with pytest.raises(UsageError, match="'histotype' is no task"):
        check_names([helper, GRADE])
    with pytest.raises(UsageError, match="all tasks are auxiliary"):
        check_names([helper])
