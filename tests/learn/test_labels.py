from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histotl.core.errors import SpecError, TableError, UsageError
from histotl.learn.labels import hard
from histotl.learn.table import build_cases
from histotl.learn.task import Task, parse_task, task_from_dict

NAN = np.nan


def test_joined_labels_with_a_word_for_none_of_them() -> None:
    task = parse_task("signs: multilabel(map={'mucin': 'm', 'blur': None})")
    cells = ["mucin; necrosis", None, "none", "necrosis;blur", ";", "1.0"]
    found = task.resolved(cells)
    assert found.classes == ("1", "m", "necrosis")
    expected = [[0, 1, 1], [NAN] * 3, [0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(found.targets(cells), expected)
    with pytest.raises(TableError, match="'scar'"):
        found.targets(["scar"])


def test_one_column_a_label_is_masked_by_entry() -> None:
    task = parse_task("signs: multilabel(columns=('mucin', 'necrosis'))")
    assert task.reads == task.classes == ("mucin", "necrosis")
    found = task.targets(["1", "no", None, None], [0.0, None, "TRUE", None])
    np.testing.assert_array_equal(found, [[1, 0], [0, NAN], [NAN, 1], [NAN, NAN]])
    with pytest.raises(TableError, match="column 'necrosis' holds 'perhaps'"):
        task.targets(["1"], ["perhaps"])


def test_votes_are_shares_and_the_majority_is_the_class() -> None:
    task = parse_task("ssa: binary(classes=('HP', 'SSA'), votes=('n_hp', 'n_ssa'))")
    found = task.targets(["5", "0", "3", None], ["2", "0", "4", "7"])
    np.testing.assert_allclose(found, [[5 / 7, 2 / 7], [NAN, NAN], [3 / 7, 4 / 7], [NAN, NAN]])
    np.testing.assert_array_equal(hard(found), [0, NAN, 1, NAN])
    with pytest.raises(TableError, match="-1"):
        task.targets(["-1"], ["8"])


def test_times_need_both_columns() -> None:
    task = parse_task("os: survival(column='months', event='dead')")
    assert task.reads == ("months", "dead")
    found = task.targets(["12.5", "3", None, "7"], ["1", "no", "1", None])
    np.testing.assert_array_equal(found, [[12.5, 1], [3, 0], [NAN, NAN], [NAN, NAN]])
    with pytest.raises(TableError, match="the time 0"):
        task.targets(["0"], ["1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("os: survival(column='months')", "whether the event was seen"),
        ("x: regression(event='dead')", "event= is for survival"),
        ("x: ordinal(classes=('a', 'b', 'c'), votes=('p', 'q', 'r'))", "takes no votes"),
        ("x: binary(columns=('p', 'q'))", "several labels"),
        ("x: binary(classes=('a', 'b'), votes=('p', 'q', 'r'))", "3 votes for 2 classes"),
        ("x: multilabel(classes=('a',))", "one class only"),
        ("x: binary(classes=('a', 'applies'))", "another column's name"),
    ],
)
def test_wrong_sources_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_task(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "g: ordinal(column='c', classes=('a', 'b', 'c'), loss='coral')",
        "size: regression(loss='quantile', levels=(0.1, 0.5, 0.9))",
        "os: survival(column='months', event='dead', loss='discrete', bins=4, times=(12.0, 36.0))",
        "m: multilabel(columns=('x', 'y'), class_balance='effective')",
        "v: binary(votes=('a', 'b'), auxiliary=True)",
        "d: binary(classes=('n', 'y'), applies_if=\"g in ('a',)\")",
    ],
)
def test_every_argument_comes_back_from_text_and_dict(text: str) -> None:
    task = parse_task(text)
    assert parse_task(str(task)) == task
    assert task_from_dict(task.to_dict()) == task


def test_options_are_those_of_the_head() -> None:
    with pytest.raises(SpecError) as caught:
        parse_task("x: ordinal(classes=('a', 'b', 'c'), los='coral')")
    assert "did you mean loss" in caught.value.hint
    with pytest.raises(SpecError, match="loss='coal'"):
        parse_task("x: ordinal(classes=('a', 'b', 'c'), loss='coal')")
    with pytest.raises(SpecError, match="auxiliary"):
        parse_task("x: regression(auxiliary='yes')")
    assert task_from_dict({"name": "q", "kind": "regression", "loss": "quantile", "levels": [0.25, 0.5, 0.75]}).options[
        "levels"
    ] == (0.25, 0.5, 0.75)


def test_bags_join_labels_votes_and_times() -> None:
    frame = pd.DataFrame(
        {
            "path": list("abcd"),
            "patient": ["p", "p", "q", "q"],
            "x": ["1", "0", None, "0"],
            "y": [None, None, "0", "1"],
            "n0": ["7", "3", "0", "2"],
            "n1": ["0", "4", "7", "5"],
            "months": ["5", "5", "9", "9"],
            "dead": ["1", "1", "0", "0"],
        }
    )
    tasks = [
        parse_task("signs: multilabel(columns=('x', 'y'))"),
        parse_task("votes: binary(votes=('n0', 'n1'))"),
        parse_task("os: survival(column='months', event='dead')"),
    ]
    made = build_cases(frame, tasks, id_column="path", patient="patient", split="", bag="patient")
    np.testing.assert_array_equal(made.targets["signs"], [[1, NAN], [0, 1]])
    np.testing.assert_allclose(made.targets["votes"], [[5 / 7, 2 / 7], [1 / 7, 6 / 7]])
    np.testing.assert_array_equal(made.targets["os"], [[5, 1], [9, 0]])
    frame.loc[1, "months"] = "6"
    with pytest.raises(TableError, match="several times or events"):
        build_cases(frame, tasks, id_column="path", patient="patient", split="", bag="patient")


def test_a_task_that_applies_to_some_is_missing_elsewhere() -> None:
    frame = pd.DataFrame(
        {"path": list("abc"), "patient": list("abc"), "type": ["TA", "HP", None], "grade": ["HG", "LG", "LG"]}
    )
    tasks = [
        Task(name="type", kind="multiclass", classes=("HP", "TA")),
        parse_task("grade: binary(classes=('LG', 'HG'), applies_if=\"type == 'TA'\")"),
    ]
    made = build_cases(frame, tasks, id_column="path", patient="patient", split="")
    np.testing.assert_array_equal(made.targets["grade"], [1, NAN, NAN])
