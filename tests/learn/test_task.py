from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.core.errors import SpecError, TableError, UnknownNameError, UsageError
from histotl.learn.task import Task, check_names, parse_task, task_from_dict, tasks_from_toml

LABELS = pd.Series(["lgin", "polyp", None, "serrated", "adenoca", ""])


def test_one_column_gives_two_tasks_through_maps() -> None:
    dysplasia = parse_task("dysplasia: binary(column='label', classes=('no', 'yes'), map={'polyp': 'no', '*': 'yes'})")
    grade = Task(
        name="grade",
        kind="ordinal",
        column="label",
        classes=("none", "low", "cancer"),
        map={"polyp": "none", "lgin": "low", "adenoca": "cancer", "serrated": None},
    )
    np.testing.assert_array_equal(dysplasia.targets(LABELS), [1, 0, np.nan, 1, 1, np.nan])
    np.testing.assert_array_equal(grade.targets(LABELS), [1, 0, np.nan, np.nan, 2, np.nan])


def test_numbers_stay_numbers_and_whole_floats_are_class_names() -> None:
    np.testing.assert_array_equal(
        Task(name="f", kind="regression").targets(["0.5", 2, None, "nan "][:3]), [0.5, 2, np.nan]
    )
    task = Task(name="t", kind="binary", classes=("0", "1"))
    # One missing value makes a column of whole numbers float.
    np.testing.assert_array_equal(task.targets(pd.Series([1, None, 0])), [1, np.nan, 0])


def test_values_that_are_no_class_are_listed() -> None:
    with pytest.raises(TableError, match="'serrated'") as caught:
        Task(name="t", kind="binary", classes=("polyp", "lgin"), column="label").targets(["polyp", "serrated"])
    assert "map=" in caught.value.hint
    with pytest.raises(TableError, match="'big'"):
        Task(name="t", kind="regression").targets(["1.5", "big"])
    with pytest.raises(TableError, match="'inf'"):
        Task(name="t", kind="regression").targets(["inf"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "binary"}, "2 classes, not 0"),
        ({"kind": "ordinal", "classes": ("a", "b")}, "3 or more"),
        ({"kind": "multiclass", "classes": ("a",)}, "one class only"),
        ({"kind": "multiclass", "classes": ("a", "b", "a")}, "repeat"),
        ({"kind": "regression", "classes": ("a", "b")}, "no classes"),
        ({"kind": "regression", "weight": 0.0}, "weight is 0.0"),
        ({"kind": "binary", "classes": ("no", "yes"), "map": {"x": "yess"}}, "'yess'"),
        ({"kind": "regression", "name": "a:b"}, "not usable"),
    ],
)
def test_wrong_tasks_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Task(**({"name": "t"} | arguments))  # type: ignore[arg-type]
    assert caught.value.hint


def test_unknown_kind_and_argument_answer_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_task("t: multiclas")
    assert "multiclass" in caught.value.hint
    with pytest.raises(SpecError) as wrong:
        parse_task("t: binary(colum='x')")
    assert "column" in wrong.value.hint


def test_multiclass_without_classes_takes_what_is_there() -> None:
    task = parse_task("label: multiclass").resolved(LABELS)
    assert task.classes == ("adenoca", "lgin", "polyp", "serrated")
    with pytest.raises(TableError, match="holds 1 classes"):
        parse_task("label: multiclass").resolved(["a", "a"])


def test_toml_tables_and_lines(tmp_path: Path) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text("[tasks.grade]\nkind='ordinal'\ncolumn='label'\nclasses=['a','b','c']\nmap={x='a', y=''}\n")
    (task,) = tasks_from_toml(file)
    assert task == Task(
        name="grade", kind="ordinal", column="label", classes=("a", "b", "c"), map={"x": "a", "y": None}
    )
    file.write_text(f'tasks = ["{task}"]\n')
    assert tasks_from_toml(file) == (task,)
    file.write_text("[[task]]\nname='size'\nkind='regression'\n")
    assert tasks_from_toml(file) == (Task(name="size", kind="regression"),)
    file.write_text("x = 1\n")
    with pytest.raises(SpecError, match="holds no tasks"):
        tasks_from_toml(file)
    with pytest.raises(SpecError, match="cannot be read"):
        tasks_from_toml(tmp_path / "absent.toml")


names = st.text(alphabet="abcdefgh' \"\\é", min_size=1, max_size=8).filter(lambda s: bool(s.strip()))


@settings(deadline=None)  # the first task imports all heads
@given(
    classes=st.lists(names.map(str.strip), min_size=3, max_size=5, unique=True),
    keys=st.lists(names.map(str.strip), max_size=3, unique=True),
    weight=st.floats(0.01, 100),
)
def test_text_and_dict_give_the_task_back(classes: list[str], keys: list[str], weight: float) -> None:
    mapping = {key: classes[i] if i else None for i, key in enumerate(keys)}
    task = Task(name="t", kind="ordinal", column="c", classes=tuple(classes), map=mapping, weight=weight)
    assert parse_task(str(task)) == task
    assert task_from_dict(task.to_dict()) == task
    assert math.isclose(task.weight, weight)


def test_whole_floats_written_as_text_are_whole_numbers() -> None:
    for classes in (("0", "1"), ("0.0", "1.0"), (0, 1.0)):
        task = Task(name="t", kind="binary", classes=classes)  # type: ignore[arg-type]
        np.testing.assert_array_equal(task.targets(["0.0", "1", "1.0", ""]), [0, 1, 1, np.nan])
    mapped = parse_task("t: binary(classes=('no', 'yes'), map={0: 'no', 1.0: 'yes'})")
    np.testing.assert_array_equal(mapped.targets(["0.0", "1"]), [0, 1])
    versions = Task(name="t", kind="multiclass").resolved(["1.10", "1.1"])
    assert versions.classes == ("1.1", "1.10")


@pytest.mark.parametrize("word", ["NA", "nan", "N/A", "null", "?"])
def test_missing_words_make_no_class_by_themselves(word: str) -> None:
    column = ["a", "b", word]
    with pytest.raises(TableError, match="looks like a missing label") as caught:
        Task(name="t", kind="multiclass").resolved(column)
    assert f"map={{{word!r}: None}}" in caught.value.hint
    assert Task(name="t", kind="multiclass", map={word: None}).resolved(column).classes == ("a", "b")
    assert Task(name="t", kind="multiclass", classes=("a", "b", word)).targets(column)[2] == 2


@pytest.mark.parametrize("name", ["slide_id", "path", "n_tiles", "model_split", "ood_score", "failure_score", "bag"])
def test_names_of_other_columns_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="the predictions have such a column"):
        check_names([Task(name=name, kind="regression")], reserved="bag")


def test_class_names_that_would_take_a_column_are_refused() -> None:
    with pytest.raises(UsageError, match="another column's name"):
        Task(name="g", kind="ordinal", classes=("low", "expected", "high"))
    with pytest.raises(UsageError, match="another column's name"):
        Task(name="g", kind="binary", classes=("a", "a:uncalibrated"))
    with pytest.raises(SpecError, match="no class name"):
        task_from_dict({"name": "g", "kind": "multiclass", "classes": [["a"], ["b"]]})


def test_texts_are_read_as_tasks() -> None:
    text = "label: multiclass(column='x')"
    assert check_names([text]) == check_names(text) == (parse_task(text),)  # type: ignore[arg-type]
